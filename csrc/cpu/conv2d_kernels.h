// The two inner loops of the sparse convolution, one for each instruction set and number of vectors.
#pragma once
#include <cstdint>

#include "runtime.h"

#define LOTTERYKIT_INLINE inline __attribute__((always_inline))

namespace lotterykit {

constexpr int most_vectors = 8;  // sums of a block that stay in registers

// Kept weights by row: row r's are [first[r], last[r]), and weight k meets the input at offsets[k].
template <typename T>
struct Taps {
  const int32_t *first, *last;
  const int64_t* offsets;
  const T* values;
};

// Where the vectors of a block stand: vector i of a row at data[row * stride + at[i]], rows counted from a call's
// first.
template <typename T>
struct Stretch {
  T* data;
  int64_t stride;
  int64_t at[most_vectors];
};

// Sums that do not begin go on from those of rows `stride` apart at `sums`; those that do not end go there.
template <typename T>
struct Stage {
  bool begins, ends, relu;
  T* sums;
  int64_t stride;
};

// Entries of a vector.
template <typename T>
inline int vector_width(Isa isa) {
  return (isa == Isa::avx512 ? 64 : 32) / int(sizeof(T));
}

// Rows [from, to): act(bias[r] + sum of values[k] * x[offsets[k] ...]) over `vectors` vectors, 1 to most_vectors,
// consecutive in x, to `out`.
template <typename T>
void conv_products(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias, const Stage<T>& stage,
                   int vectors, const Stretch<T>& out, Isa isa);

// Rows [from, to): dvalues[k] += the dot product of the row in `held` and x[offsets[k] ...] over the vectors.
template <typename T>
void conv_samples(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from, int64_t to,
                  int vectors, T* dvalues, Isa isa);

// `count` pixels of `images` entries each, whose firsts stand so many entries apart; what is moved next, `ahead`
// entries further, is called into the caches.
template <typename T>
void move_pixels(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                 int64_t out_step, Isa isa);

// out[c * out_stride + r] = in[r * in_stride + c].
template <typename T>
void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t cols, T* out, int64_t out_stride, Isa isa);

}  // namespace lotterykit
