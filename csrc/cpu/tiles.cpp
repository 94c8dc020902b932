#include "tiles.h"

#include "x86.h"

namespace lotterykit {
namespace {

template <typename T>
void to_tile_plain(const T* x, const T* gate, int64_t stride, int first, int last, int lanes, int64_t from,
                   int64_t to, T* tile) {
  for (int b = first; b < last; ++b)
    for (int64_t f = from; f < to; ++f) {
      const int64_t at = b * stride + f;
      tile[f * lanes + b] = gate != nullptr && gate[at] <= 0 ? T(0) : x[at];
    }
}

template <typename T>
void from_tile_plain(const T* tile, int lanes, int first, int last, int64_t from, int64_t to, T* y,
                     int64_t stride) {
  for (int b = first; b < last; ++b)
    for (int64_t r = from; r < to; ++r) y[b * stride + r] = tile[r * lanes + b];
}

#ifdef LOTTERYKIT_X86

// Both halves of a column of 4 come from memory, which saves a third of the shuffles.
LOTTERYKIT_AVX2 inline void transpose_8x8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  __m256 r[8], t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float* upper = in + i * in_stride;
    const float* lower = in + (i + 4) * in_stride;
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper)), _mm_loadu_ps(lower), 1);
    r[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper + 4)), _mm_loadu_ps(lower + 4), 1);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    t[h] = _mm256_unpacklo_ps(r[h], r[h + 1]);
    t[h + 1] = _mm256_unpackhi_ps(r[h], r[h + 1]);
    t[h + 2] = _mm256_unpacklo_ps(r[h + 2], r[h + 3]);
    t[h + 3] = _mm256_unpackhi_ps(r[h + 2], r[h + 3]);
    _mm256_storeu_ps(out + h * out_stride, _mm256_shuffle_ps(t[h], t[h + 2], 0x44));
    _mm256_storeu_ps(out + (h + 1) * out_stride, _mm256_shuffle_ps(t[h], t[h + 2], 0xee));
    _mm256_storeu_ps(out + (h + 2) * out_stride, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0x44));
    _mm256_storeu_ps(out + (h + 3) * out_stride, _mm256_shuffle_ps(t[h + 1], t[h + 3], 0xee));
  }
}

LOTTERYKIT_AVX2 void to_tile_avx2(const float* x, const float* gate, int64_t stride, int examples, int lanes,
                                  int64_t from, int64_t to, float* tile) {
  const int64_t whole = from + ((to - from) & ~int64_t(7));
  const int full = examples & ~7;
  alignas(32) float gated[64];
  for (int b = 0; b < full; b += 8)  // eight rows at a time: more than that share a set of the first cache
    for (int64_t f = from; f < whole; f += 8) {
      const float* in = x + b * stride + f;
      int64_t in_stride = stride;
      if (gate != nullptr) {
        for (int i = 0; i < 8; ++i) {
          const __m256 y = _mm256_loadu_ps(gate + (b + i) * stride + f);
          const __m256 off = _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_LE_OQ);
          _mm256_store_ps(gated + 8 * i, _mm256_andnot_ps(off, _mm256_loadu_ps(in + i * stride)));
        }
        in = gated, in_stride = 8;
      }
      transpose_8x8(in, in_stride, tile + f * lanes + b, lanes);
    }
  to_tile_plain(x, gate, stride, 0, full, lanes, whole, to, tile);
  to_tile_plain(x, gate, stride, full, examples, lanes, from, to, tile);
}

LOTTERYKIT_AVX2 void from_tile_avx2(const float* tile, int lanes, int examples, int64_t rows, float* y,
                                    int64_t stride) {
  const int64_t whole = rows & ~int64_t(7);
  const int full = examples & ~7;
  for (int b = 0; b < full; b += 8)
    for (int64_t r = 0; r < whole; r += 8) transpose_8x8(tile + r * lanes + b, lanes, y + b * stride + r, stride);
  from_tile_plain(tile, lanes, 0, full, whole, rows, y, stride);
  from_tile_plain(tile, lanes, full, examples, 0, rows, y, stride);
}

#endif  // LOTTERYKIT_X86

template <typename T>
void clear_lanes(int examples, int lanes, int64_t from, int64_t to, T* tile) {
  if (examples == lanes) return;
  for (int64_t f = from; f < to; ++f) std::fill(tile + f * lanes + examples, tile + (f + 1) * lanes, T(0));
}

}  // namespace

template <>
void to_tile(const float* x, const float* gate, int64_t stride, int examples, int64_t from, int64_t to,
             float* tile, Isa isa) {
  const int lanes = lanes_of(examples);
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) to_tile_avx2(x, gate, stride, examples, lanes, from, to, tile);
#endif
  if (isa == Isa::plain) to_tile_plain(x, gate, stride, 0, examples, lanes, from, to, tile);
  clear_lanes(examples, lanes, from, to, tile);
}

template <>
void to_tile(const double* x, const double* gate, int64_t stride, int examples, int64_t from, int64_t to,
             double* tile, Isa) {
  const int lanes = lanes_of(examples);
  to_tile_plain(x, gate, stride, 0, examples, lanes, from, to, tile);
  clear_lanes(examples, lanes, from, to, tile);
}

template <>
void from_tile(const float* tile, int lanes, int examples, int64_t rows, float* y, int64_t stride, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa != Isa::plain) return from_tile_avx2(tile, lanes, examples, rows, y, stride);
#endif
  (void)isa;
  from_tile_plain(tile, lanes, 0, examples, 0, rows, y, stride);
}

template <>
void from_tile(const double* tile, int lanes, int examples, int64_t rows, double* y, int64_t stride, Isa) {
  from_tile_plain(tile, lanes, 0, examples, 0, rows, y, stride);
}

}  // namespace lotterykit
