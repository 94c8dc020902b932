// Dot products over the examples of a tile at every kept place. A row of g stays in registers; the lanes of
// four places are summed together, which halves the cost of summing across a vector.
#include "products.h"
#include "spmm.h"
#include "x86.h"

namespace lotterykit {
namespace {

// Lanes are added in sixteen strands that are folded in halves.
template <typename T>
T dot_plain(const T* a, const T* b, int lanes) {
  T sums[16] = {};
  for (int l = 0; l < lanes; l += 16)
    for (int j = 0; j < 16; ++j) sums[j] += a[l + j] * b[l + j];
  for (int half = 8; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

template <typename T>
void sampled_plain(const T* g_tile, const T* x_tile, int lanes, const Structure& w, int64_t from, int64_t to,
                   bool first, T* dvalues) {
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int64_t r = from; r < to; ++r)
      for (int64_t k = w.first(block, r), last = w.last(block, r); k < last; ++k) {
        const T dot = dot_plain(g_tile + r * lanes, x_tile + int64_t(w.columns[k]) * lanes, lanes);
        dvalues[k] = first ? dot : dvalues[k] + dot;
      }
}

#ifdef LOTTERYKIT_X86

// Lane j of the result is the sum over the lanes of s[j].
LOTTERYKIT_AVX2 inline __m128 sum_lanes(__m256 s0, __m256 s1, __m256 s2, __m256 s3) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(s0, s1), _mm256_hadd_ps(s2, s3));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

template <int vectors>
LOTTERYKIT_AVX512 inline __m256 dot_avx512(const __m512 (&g)[vectors], const float* x) {
  __m512 sum = _mm512_mul_ps(g[0], _mm512_load_ps(x));
#pragma GCC unroll 4
  for (int v = 1; v < vectors; ++v) sum = _mm512_fmadd_ps(g[v], _mm512_load_ps(x + 16 * v), sum);
  return _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
}

template <int vectors>
LOTTERYKIT_AVX512 void sampled_avx512(const float* g_tile, const float* x_tile, const Structure& w, int64_t from,
                                      int64_t to, bool first, float* dvalues) {
  constexpr int lanes = vectors * 16;
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int64_t r = from; r < to; ++r) {
      int64_t k = w.first(block, r);
      const int64_t last = w.last(block, r);
      if (k == last) continue;
      __m512 g[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) g[v] = _mm512_load_ps(g_tile + r * lanes + 16 * v);
      for (; k + 4 <= last; k += 4) {
        __m256 s[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) s[j] = dot_avx512(g, x_tile + int64_t(w.columns[k + j]) * lanes);
        const __m128 dots = sum_lanes(s[0], s[1], s[2], s[3]);
        _mm_storeu_ps(dvalues + k, first ? dots : _mm_add_ps(_mm_loadu_ps(dvalues + k), dots));
      }
      for (; k < last; ++k) {
        const __m256 s = dot_avx512(g, x_tile + int64_t(w.columns[k]) * lanes);
        const float dot = _mm_cvtss_f32(sum_lanes(s, s, s, s));
        dvalues[k] = first ? dot : dvalues[k] + dot;
      }
    }
}

template <int vectors>
LOTTERYKIT_AVX2 inline __m256 dot_avx2(const __m256 (&g)[vectors], const float* x) {
  __m256 sum = _mm256_mul_ps(g[0], _mm256_load_ps(x));
#pragma GCC unroll 8
  for (int v = 1; v < vectors; ++v) sum = _mm256_fmadd_ps(g[v], _mm256_load_ps(x + 8 * v), sum);
  return sum;
}

template <int vectors>
LOTTERYKIT_AVX2 void sampled_avx2(const float* g_tile, const float* x_tile, const Structure& w, int64_t from,
                                  int64_t to, bool first, float* dvalues) {
  constexpr int lanes = vectors * 8;
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int64_t r = from; r < to; ++r) {
      int64_t k = w.first(block, r);
      const int64_t last = w.last(block, r);
      if (k == last) continue;
      __m256 g[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) g[v] = _mm256_load_ps(g_tile + r * lanes + 8 * v);
      for (; k + 4 <= last; k += 4) {
        __m256 s[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) s[j] = dot_avx2(g, x_tile + int64_t(w.columns[k + j]) * lanes);
        const __m128 dots = sum_lanes(s[0], s[1], s[2], s[3]);
        _mm_storeu_ps(dvalues + k, first ? dots : _mm_add_ps(_mm_loadu_ps(dvalues + k), dots));
      }
      for (; k < last; ++k) {
        const __m256 s = dot_avx2(g, x_tile + int64_t(w.columns[k]) * lanes);
        const float dot = _mm_cvtss_f32(sum_lanes(s, s, s, s));
        dvalues[k] = first ? dot : dvalues[k] + dot;
      }
    }
}

#endif  // LOTTERYKIT_X86

}  // namespace

template <>
void sampled_rows(const float* g_tile, const float* x_tile, int lanes, const Structure& w, int64_t from,
                  int64_t to, bool first, float* dvalues, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) {
    const auto kernel = lanes == 64 ? sampled_avx512<4> : lanes == 32 ? sampled_avx512<2> : sampled_avx512<1>;
    return kernel(g_tile, x_tile, w, from, to, first, dvalues);
  }
  if (isa == Isa::avx2) {
    const auto kernel = lanes == 64 ? sampled_avx2<8> : lanes == 32 ? sampled_avx2<4> : sampled_avx2<2>;
    return kernel(g_tile, x_tile, w, from, to, first, dvalues);
  }
#endif
  (void)isa;
  sampled_plain(g_tile, x_tile, lanes, w, from, to, first, dvalues);
}

template <>
void sampled_rows(const double* g_tile, const double* x_tile, int lanes, const Structure& w, int64_t from,
                  int64_t to, bool first, double* dvalues, Isa) {
  sampled_plain(g_tile, x_tile, lanes, w, from, to, first, dvalues);
}

template <typename T>
bool sddmm(const T* g, const T* x, int64_t batch, const Structure& w, T* dvalues, const Run& wanted) {
  const Run run{threads_for(double(w.nnz()) * double(batch), wanted.threads), wanted.isa, wanted.watch};
  if (batch == 0) std::fill(dvalues, dvalues + w.nnz(), T(0));
  const int64_t most = tiles_at_once(batch, run.threads);
  const Scratch<T> g_tiles(most * tile_width * w.rows), x_tiles(most * tile_width * w.cols);
  for (int64_t t = 0; t < tile_count(batch) && !run.watch.stopped(); t += most) {
    const int64_t count = std::min(most, tile_count(batch) - t);
    fill_tiles<T>(g, nullptr, batch, w.rows, t, count, g_tiles.get(), run);
    fill_tiles<T>(x, nullptr, batch, w.cols, t, count, x_tiles.get(), run);
    sample_tiles(g_tiles.get(), x_tiles.get(), batch, t, count, w, dvalues, run);
  }
  return !run.watch.stopped();
}

template bool sddmm(const float*, const float*, int64_t, const Structure&, float*, const Run&);
template bool sddmm(const double*, const double*, int64_t, const Structure&, double*, const Run&);

}  // namespace lotterykit
