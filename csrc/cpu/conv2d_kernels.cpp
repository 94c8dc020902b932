// Written once in the compilers' vector types; a wrapper with a target attribute inlines the loop for each
// instruction set. Loads are unaligned: over pixels a tap begins anywhere.
#include "conv2d_kernels.h"

#include <utility>

#include "x86.h"

namespace lotterykit {
namespace {

template <typename T, int bytes>
struct Vector {
  typedef T Value __attribute__((vector_size(bytes)));
  typedef T Loose __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
  static constexpr int width = bytes / int(sizeof(T));
};

// chains: sums that run side by side where few vectors would wait for each other.
template <typename T, int bytes, int n>
LOTTERYKIT_INLINE void products_body(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias,
                                     const Stage<T>& stage, const Stretch<T>& out) {
  using V = Vector<T, bytes>;
  using Value = typename V::Value;
  using Loose = typename V::Loose;
  constexpr int chains = n >= 4 ? 1 : n >= 2 ? 2 : 4;
  for (int64_t r = from; r < to; ++r) {
    int64_t k = taps.first[r];
    const int64_t last = taps.last[r];
    if (k == last && !stage.begins && !stage.ends) continue;
    T* held = stage.sums + (r - from) * stage.stride;
    if (stage.ends) {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) __builtin_prefetch(out.data + (r + 1 - from) * out.stride + out.at[i], 1);
    }
    Value sum[chains][n];
    const T start = bias == nullptr ? T(0) : bias[r];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      sum[0][i] = stage.begins ? Value{} + start : *reinterpret_cast<const Loose*>(held + i * V::width);
#pragma GCC unroll 4
    for (int c = 1; c < chains; ++c)
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) sum[c][i] = Value{};
    for (; k + chains <= last; k += chains) {
#pragma GCC unroll 4
      for (int c = 0; c < chains; ++c) {
        const T* at = x + taps.offsets[k + c];
        const T value = taps.values[k + c];
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) sum[c][i] += value * *reinterpret_cast<const Loose*>(at + i * V::width);
      }
    }
    for (; chains > 1 && k < last; ++k) {
      const T* at = x + taps.offsets[k];
      const T value = taps.values[k];
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) sum[0][i] += value * *reinterpret_cast<const Loose*>(at + i * V::width);
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
      for (int c = 1; c < chains; ++c) sum[0][i] += sum[c][i];
    if (!stage.ends) {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) *reinterpret_cast<Loose*>(held + i * V::width) = sum[0][i];
      continue;
    }
    T* row = out.data + (r - from) * out.stride;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      if (stage.relu) sum[0][i] = sum[0][i] < T(0) ? Value{} : sum[0][i];  // NaN stays
      *reinterpret_cast<Loose*>(row + out.at[i]) = sum[0][i];
    }
  }
}

// fold adds the entries of four vectors to four places.
template <typename T, int bytes, int n, typename Fold>
LOTTERYKIT_INLINE void samples_body(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from,
                                    int64_t to, T* dvalues) {
  using V = Vector<T, bytes>;
  using Value = typename V::Value;
  using Loose = typename V::Loose;
  for (int64_t r = from; r < to; ++r) {
    const int64_t last = taps.last[r];
    if (taps.first[r] == last) continue;
    const T* own = held.data + (r - from) * held.stride;
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) __builtin_prefetch(own + held.stride + held.at[i]);
    Value row[n];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) row[i] = *reinterpret_cast<const Loose*>(own + held.at[i]);
    for (int64_t k = taps.first[r]; k < last; k += 4) {
      Value sums[4];
      const int64_t left = last - k;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {  // the last weight again where fewer are left
        const T* at = x + taps.offsets[j < left ? k + j : last - 1];
        sums[j] = row[0] * *reinterpret_cast<const Loose*>(at);
#pragma GCC unroll 8
        for (int i = 1; i < n; ++i) sums[j] += row[i] * *reinterpret_cast<const Loose*>(at + i * V::width);
      }
      T folded[4];
      Fold::run(sums, folded);
      if (left >= 4)
        for (int j = 0; j < 4; ++j) dvalues[k + j] += folded[j];
      else
        for (int j = 0; j < left; ++j) dvalues[k + j] += folded[j];
    }
  }
}

template <typename T, int bytes>
LOTTERYKIT_INLINE void copy_entries(const T* in, int64_t count, int64_t ahead, T* out) {
  using V = Vector<T, bytes>;
  using Loose = typename V::Loose;
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) {
    __builtin_prefetch(in + i + ahead);
    *reinterpret_cast<Loose*>(out + i) = *reinterpret_cast<const Loose*>(in + i);
  }
  for (; i < count; ++i) out[i] = in[i];
}

template <typename T, int bytes>
LOTTERYKIT_INLINE void moves_body(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                                  int64_t out_step) {
  if (in_step == images && out_step == images) return copy_entries<T, bytes>(in, count * images, ahead, out);
  if (images == 1)
    for (int64_t i = 0; i < count; ++i) out[i * out_step] = in[i * in_step];
  else
    for (int64_t i = 0; i < count; ++i) copy_entries<T, bytes>(in + i * in_step, images, ahead, out + i * out_step);
}

struct FoldPlain {
  template <typename Value, typename T>
  static LOTTERYKIT_INLINE void run(const Value (&sums)[4], T (&folded)[4]) {
    for (int j = 0; j < 4; ++j) {
      folded[j] = 0;
      for (size_t i = 0; i < sizeof(Value) / sizeof(T); ++i) folded[j] += sums[j][i];
    }
  }
};

template <typename T>
void moves_plain(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                 int64_t out_step) {
  moves_body<T, 32>(in, in_step, count, images, ahead, out, out_step);
}
template <typename T, int n>
void products_plain(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias,
                    const Stage<T>& stage, const Stretch<T>& out) {
  products_body<T, 32, n>(x, taps, from, to, bias, stage, out);
}
template <typename T, int n>
void samples_plain(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from, int64_t to,
                   T* dvalues) {
  samples_body<T, 32, n, FoldPlain>(held, x, taps, from, to, dvalues);
}

template <typename T>
void transpose_plain(const T* in, int64_t in_stride, int64_t first_row, int64_t rows, int64_t first_col,
                     int64_t cols, T* out, int64_t out_stride) {
  for (int64_t r = first_row; r < rows; ++r)
    for (int64_t c = first_col; c < cols; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

#ifdef LOTTERYKIT_X86

// Doubles serve the float64 checks, which need no speed.
struct FoldAvx2 : FoldPlain {
  using FoldPlain::run;
  LOTTERYKIT_AVX2 static inline void run(const __m256 (&s)[4], float (&folded)[4]) {
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    _mm_storeu_ps(folded, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
};
struct FoldAvx512 : FoldPlain {
  using FoldPlain::run;
  LOTTERYKIT_AVX512 static inline void run(const __m512 (&s)[4], float (&folded)[4]) {
    __m256 halves[4];
    for (int j = 0; j < 4; ++j)
      halves[j] = _mm256_add_ps(_mm512_castps512_ps256(s[j]), _mm512_extractf32x8_ps(s[j], 1));
    const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(halves[0], halves[1]), _mm256_hadd_ps(halves[2], halves[3]));
    _mm_storeu_ps(folded, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  }
};

template <typename T>
LOTTERYKIT_AVX2 void moves_avx2(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                                int64_t out_step) {
  moves_body<T, 32>(in, in_step, count, images, ahead, out, out_step);
}
template <typename T, int n>
LOTTERYKIT_AVX2 void products_avx2(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias,
                                   const Stage<T>& stage, const Stretch<T>& out) {
  products_body<T, 32, n>(x, taps, from, to, bias, stage, out);
}
template <typename T, int n>
LOTTERYKIT_AVX2 void samples_avx2(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from,
                                  int64_t to, T* dvalues) {
  samples_body<T, 32, n, FoldAvx2>(held, x, taps, from, to, dvalues);
}
template <typename T>
LOTTERYKIT_AVX512 void moves_avx512(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                                    int64_t out_step) {
  moves_body<T, 64>(in, in_step, count, images, ahead, out, out_step);
}
template <typename T, int n>
LOTTERYKIT_AVX512 void products_avx512(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias,
                                       const Stage<T>& stage, const Stretch<T>& out) {
  products_body<T, 64, n>(x, taps, from, to, bias, stage, out);
}
template <typename T, int n>
LOTTERYKIT_AVX512 void samples_avx512(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from,
                                      int64_t to, T* dvalues) {
  samples_body<T, 64, n, FoldAvx512>(held, x, taps, from, to, dvalues);
}

// Both halves of a column of 4 come from memory, which saves a third of the shuffles.
LOTTERYKIT_AVX2 inline void transpose_8x8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  __m256 r[8], t[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float* upper = in + i * in_stride;
    const float* lower = in + (i + 4) * in_stride;
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper)), _mm_loadu_ps(lower), 1);
    r[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper + 4)), _mm_loadu_ps(lower + 4), 1);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    t[0] = _mm256_unpacklo_ps(r[h], r[h + 1]);
    t[1] = _mm256_unpackhi_ps(r[h], r[h + 1]);
    t[2] = _mm256_unpacklo_ps(r[h + 2], r[h + 3]);
    t[3] = _mm256_unpackhi_ps(r[h + 2], r[h + 3]);
    _mm256_storeu_ps(out + h * out_stride, _mm256_shuffle_ps(t[0], t[2], 0x44));
    _mm256_storeu_ps(out + (h + 1) * out_stride, _mm256_shuffle_ps(t[0], t[2], 0xee));
    _mm256_storeu_ps(out + (h + 2) * out_stride, _mm256_shuffle_ps(t[1], t[3], 0x44));
    _mm256_storeu_ps(out + (h + 3) * out_stride, _mm256_shuffle_ps(t[1], t[3], 0xee));
  }
}

LOTTERYKIT_AVX2 void transpose_avx2(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out,
                                    int64_t out_stride) {
  const int64_t whole_rows = rows & ~int64_t(7), whole_cols = cols & ~int64_t(7);
  for (int64_t r = 0; r < whole_rows; r += 8)
    for (int64_t c = 0; c < whole_cols; c += 8)
      transpose_8x8(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
  transpose_plain(in, in_stride, 0, whole_rows, whole_cols, cols, out, out_stride);
  transpose_plain(in, in_stride, whole_rows, rows, 0, cols, out, out_stride);
}

#endif  // LOTTERYKIT_X86

template <typename T>
using Products = void (*)(const T*, const Taps<T>&, int64_t, int64_t, const T*, const Stage<T>&,
                          const Stretch<T>&);
template <typename T>
using Samples = void (*)(const Stretch<const T>&, const T*, const Taps<T>&, int64_t, int64_t, T*);

// The kernels for 1 to most_vectors vectors, in that order.
template <typename T>
struct Kernels {
  Products<T> products[most_vectors];
  Samples<T> samples[most_vectors];
};

template <typename T, int... n>
Kernels<T> kernels_of(Isa isa, std::integer_sequence<int, n...>) {
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) return {{products_avx512<T, n + 1>...}, {samples_avx512<T, n + 1>...}};
  if (isa == Isa::avx2) return {{products_avx2<T, n + 1>...}, {samples_avx2<T, n + 1>...}};
#endif
  (void)isa;
  return {{products_plain<T, n + 1>...}, {samples_plain<T, n + 1>...}};
}

template <typename T>
const Kernels<T>& kernels(Isa isa) {
  using Numbers = std::make_integer_sequence<int, most_vectors>;
  static const Kernels<T> of_isa[] = {kernels_of<T>(Isa::plain, Numbers()), kernels_of<T>(Isa::avx2, Numbers()),
                                      kernels_of<T>(Isa::avx512, Numbers())};
  return of_isa[int(isa)];
}

}  // namespace

template <typename T>
void conv_products(const T* x, const Taps<T>& taps, int64_t from, int64_t to, const T* bias, const Stage<T>& stage,
                   int vectors, const Stretch<T>& out, Isa isa) {
  kernels<T>(isa).products[vectors - 1](x, taps, from, to, bias, stage, out);
}

template <typename T>
void conv_samples(const Stretch<const T>& held, const T* x, const Taps<T>& taps, int64_t from, int64_t to,
                  int vectors, T* dvalues, Isa isa) {
  kernels<T>(isa).samples[vectors - 1](held, x, taps, from, to, dvalues);
}

template <typename T>
void move_pixels(const T* in, int64_t in_step, int64_t count, int64_t images, int64_t ahead, T* out,
                 int64_t out_step, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) return moves_avx512(in, in_step, count, images, ahead, out, out_step);
  if (isa == Isa::avx2) return moves_avx2(in, in_step, count, images, ahead, out, out_step);
#endif
  (void)isa;
  moves_plain(in, in_step, count, images, ahead, out, out_step);
}

template <>
void transpose(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride,
               Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return transpose_avx2(in, in_stride, rows, cols, out, out_stride);
#endif
  (void)isa;
  transpose_plain(in, in_stride, 0, rows, 0, cols, out, out_stride);
}

template <>
void transpose(const double* in, int64_t in_stride, int64_t rows, int64_t cols, double* out, int64_t out_stride,
               Isa) {
  transpose_plain(in, in_stride, 0, rows, 0, cols, out, out_stride);
}

template void conv_products(const float*, const Taps<float>&, int64_t, int64_t, const float*, const Stage<float>&,
                            int, const Stretch<float>&, Isa);
template void conv_products(const double*, const Taps<double>&, int64_t, int64_t, const double*,
                            const Stage<double>&, int, const Stretch<double>&, Isa);
template void conv_samples(const Stretch<const float>&, const float*, const Taps<float>&, int64_t, int64_t, int,
                           float*, Isa);
template void conv_samples(const Stretch<const double>&, const double*, const Taps<double>&, int64_t, int64_t, int,
                           double*, Isa);
template void move_pixels(const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t, Isa);
template void move_pixels(const double*, int64_t, int64_t, int64_t, int64_t, double*, int64_t, Isa);

}  // namespace lotterykit
