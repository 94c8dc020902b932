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

// Eight features of four examples, transposed in registers: r[i] holds example i's. Loading both halves of a
// column of 4 from memory saves a third of the shuffles.
LOTTERYKIT_AVX2 inline void transpose_8x4(const float* in, int64_t stride, __m256 (&r)[4]) {
  __m256 t[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(in + i * stride)),
                                _mm_loadu_ps(in + (i + 4) * stride), 1);
  t[0] = _mm256_unpacklo_ps(r[0], r[1]);
  t[1] = _mm256_unpackhi_ps(r[0], r[1]);
  t[2] = _mm256_unpacklo_ps(r[2], r[3]);
  t[3] = _mm256_unpackhi_ps(r[2], r[3]);
  r[0] = _mm256_shuffle_ps(t[0], t[2], 0x44);
  r[1] = _mm256_shuffle_ps(t[0], t[2], 0xee);
  r[2] = _mm256_shuffle_ps(t[1], t[3], 0x44);
  r[3] = _mm256_shuffle_ps(t[1], t[3], 0xee);
}

LOTTERYKIT_AVX2 inline __m256 gated_avx2(__m256 x, const float* gate) {
  return _mm256_andnot_ps(_mm256_cmp_ps(_mm256_loadu_ps(gate), _mm256_setzero_ps(), _CMP_LE_OQ), x);
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
        for (int i = 0; i < 8; ++i)
          _mm256_store_ps(gated + 8 * i,
                          gated_avx2(_mm256_loadu_ps(in + i * stride), gate + (b + i) * stride + f));
        in = gated, in_stride = 8;
      }
      float* out = tile + f * lanes + b;
#pragma GCC unroll 2
      for (int h = 0; h < 8; h += 4) {
        __m256 r[4];
        transpose_8x4(in + h, in_stride, r);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + (h + i) * lanes, r[i]);
      }
    }
  to_tile_plain(x, gate, stride, 0, full, lanes, whole, to, tile);
  to_tile_plain(x, gate, stride, full, examples, lanes, from, to, tile);
}

// Lines of y are written whole: their stride is often such that eight of them fill a set of the first cache.
LOTTERYKIT_AVX2 void from_tile_avx2(const float* tile, int lanes, int examples, int64_t rows, float* y,
                                    int64_t stride) {
  const int64_t whole = rows & ~int64_t(15);
  const int full = examples & ~3;
  for (int b = 0; b < full; b += 4)
    for (int64_t r = 0; r < whole; r += 16) {
      __m256 low[4], high[4];
      transpose_8x4(tile + r * lanes + b, lanes, low);
      transpose_8x4(tile + (r + 8) * lanes + b, lanes, high);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(y + (b + i) * stride + r, low[i]);
        _mm256_storeu_ps(y + (b + i) * stride + r + 8, high[i]);
      }
    }
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
