// One kernel an instruction set: accumulators for a whole tile row stay in registers over a row's kept weights,
// since storing y per kept weight would take three times as long.
#include "spmm.h"

#include "products.h"
#include "x86.h"

namespace lotterykit {
namespace {

template <typename T, int lanes>
void product_plain(const T* tile, const Structure& w, const T* values, const T* bias, bool relu, int64_t from,
                   int64_t to, T* out) {
  for (int64_t block = 0; block < w.blocks; ++block)
    for (int64_t r = from; r < to; ++r) {
      T sum[lanes];
      T* row = out + (r - from) * lanes;
      if (block == 0) std::fill(sum, sum + lanes, bias == nullptr ? T(0) : bias[r]);
      else std::copy(row, row + lanes, sum);
      for (int64_t k = w.first(block, r), last = w.last(block, r); k < last; ++k) {
        const T value = values[k];
        const T* x = tile + int64_t(w.columns[k]) * lanes;
        for (int i = 0; i < lanes; ++i) sum[i] += value * x[i];
      }
      if (relu && block + 1 == w.blocks)
        for (int i = 0; i < lanes; ++i) sum[i] = sum[i] < 0 ? T(0) : sum[i];
      std::copy(sum, sum + lanes, row);
    }
}

template <typename T>
void product_plain(const T* tile, int lanes, const Structure& w, const T* values, const T* bias, bool relu,
                   int64_t from, int64_t to, T* out) {
  if (lanes == 64) product_plain<T, 64>(tile, w, values, bias, relu, from, to, out);
  else if (lanes == 32) product_plain<T, 32>(tile, w, values, bias, relu, from, to, out);
  else product_plain<T, 16>(tile, w, values, bias, relu, from, to, out);
}

#ifdef LOTTERYKIT_X86

// vectors: registers a tile row takes; chains: sums that run side by side where these alone would wait for
// each other.
template <int vectors, int chains>
LOTTERYKIT_AVX512 void product_avx512(const float* tile, const Structure& w, const float* values,
                                      const float* bias, bool relu, int64_t from, int64_t to, float* out) {
  constexpr int lanes = vectors * 16;
  for (int64_t block = 0; block < w.blocks; ++block) {
    const bool clamp = relu && block + 1 == w.blocks;
    for (int64_t r = from; r < to; ++r) {
      float* row = out + (r - from) * lanes;
      __m512 sum[chains][vectors];
      const __m512 start = _mm512_set1_ps(bias == nullptr ? 0.0f : bias[r]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sum[0][v] = block == 0 ? start : _mm512_load_ps(row + 16 * v);
#pragma GCC unroll 4
        for (int c = 1; c < chains; ++c) sum[c][v] = _mm512_setzero_ps();
      }
      int64_t k = w.first(block, r);
      const int64_t last = w.last(block, r);
      for (; k + chains <= last; k += chains) {
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) {
          const float* x = tile + int64_t(w.columns[k + c]) * lanes;
          const __m512 value = _mm512_set1_ps(values[k + c]);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; ++v)
            sum[c][v] = _mm512_fmadd_ps(value, _mm512_load_ps(x + 16 * v), sum[c][v]);
        }
      }
      for (; chains > 1 && k < last; ++k) {
        const float* x = tile + int64_t(w.columns[k]) * lanes;
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
          sum[0][v] = _mm512_fmadd_ps(_mm512_set1_ps(values[k]), _mm512_load_ps(x + 16 * v), sum[0][v]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
        for (int c = 1; c < chains; ++c) sum[0][v] = _mm512_add_ps(sum[0][v], sum[c][v]);
        if (clamp) sum[0][v] = _mm512_max_ps(_mm512_setzero_ps(), sum[0][v]);  // NaN stays: it stands second
        _mm512_store_ps(row + 16 * v, sum[0][v]);
      }
    }
  }
}

template <int vectors>
LOTTERYKIT_AVX2 void product_avx2(const float* tile, const Structure& w, const float* values, const float* bias,
                                  bool relu, int64_t from, int64_t to, float* out) {
  constexpr int lanes = vectors * 8;
  for (int64_t block = 0; block < w.blocks; ++block) {
    const bool clamp = relu && block + 1 == w.blocks;
    for (int64_t r = from; r < to; ++r) {
      float* row = out + (r - from) * lanes;
      __m256 sum[vectors];
      const __m256 start = _mm256_set1_ps(bias == nullptr ? 0.0f : bias[r]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[v] = block == 0 ? start : _mm256_load_ps(row + 8 * v);
      for (int64_t k = w.first(block, r), last = w.last(block, r); k < last; ++k) {
        const float* x = tile + int64_t(w.columns[k]) * lanes;
        const __m256 value = _mm256_set1_ps(values[k]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[v] = _mm256_fmadd_ps(value, _mm256_load_ps(x + 8 * v), sum[v]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        if (clamp) sum[v] = _mm256_max_ps(_mm256_setzero_ps(), sum[v]);
        _mm256_store_ps(row + 8 * v, sum[v]);
      }
    }
  }
}

#endif  // LOTTERYKIT_X86

}  // namespace

template <>
void product_rows(const float* tile, int lanes, const Structure& w, const float* values, const float* bias,
                  bool relu, int64_t from, int64_t to, float* out, Isa isa) {
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) {
    const auto kernel = lanes == 64 ? product_avx512<4, 1> : lanes == 32 ? product_avx512<2, 2> : product_avx512<1, 4>;
    return kernel(tile, w, values, bias, relu, from, to, out);
  }
  if (isa == Isa::avx2) {
    const auto kernel = lanes == 64 ? product_avx2<8> : lanes == 32 ? product_avx2<4> : product_avx2<2>;
    return kernel(tile, w, values, bias, relu, from, to, out);
  }
#endif
  (void)isa;
  product_plain(tile, lanes, w, values, bias, relu, from, to, out);
}

// Doubles serve the float64 checks, which need no speed: plain code at every level.
template <>
void product_rows(const double* tile, int lanes, const Structure& w, const double* values, const double* bias,
                  bool relu, int64_t from, int64_t to, double* out, Isa) {
  product_plain(tile, lanes, w, values, bias, relu, from, to, out);
}

template <typename T>
bool spmm(const T* x, int64_t batch, const Structure& w, const T* values, const int32_t* order, const T* bias,
          bool relu, T* y, const Run& wanted) {
  const Run run{threads_for(double(w.nnz()) * double(batch), wanted.threads), wanted.isa, wanted.watch};
  const Scratch<T> ordered(order == nullptr ? 0 : w.nnz());
  if (order != nullptr) {
    reorder(values, order, w.nnz(), ordered.get(), run);
    values = ordered.get();
  }
  const int64_t most = tiles_at_once(batch, run.threads);
  const Scratch<T> tiles(most * tile_width * w.cols);
  for (int64_t t = 0; t < tile_count(batch) && !run.watch.stopped(); t += most) {
    const int64_t count = std::min(most, tile_count(batch) - t);
    fill_tiles<T>(x, nullptr, batch, w.cols, t, count, tiles.get(), run);
    multiply_tiles(tiles.get(), batch, t, count, w, values, bias, relu, y, run);
  }
  return !run.watch.stopped();
}

template <typename T>
bool spmm_backward(const T* g, const T* gate, const T* x, int64_t batch, const Structure& w,
                   const Structure& transposed, const T* values, const int32_t* order, const Gradients<T>& out,
                   const Run& wanted) {
  const Run run{threads_for(2.0 * double(w.nnz()) * double(batch), wanted.threads), wanted.isa, wanted.watch};
  const Scratch<T> ordered(out.dx == nullptr ? 0 : w.nnz());
  if (out.dx != nullptr) reorder(values, order, w.nnz(), ordered.get(), run);
  if (out.dvalues != nullptr && batch == 0) std::fill(out.dvalues, out.dvalues + w.nnz(), T(0));
  if (out.dbias != nullptr) std::fill(out.dbias, out.dbias + w.rows, T(0));
  const int64_t most = tiles_at_once(batch, run.threads);
  const Scratch<T> g_tiles(most * tile_width * w.rows), x_tiles(out.dvalues ? most * tile_width * w.cols : 0);
  for (int64_t t = 0; t < tile_count(batch) && !run.watch.stopped(); t += most) {
    const int64_t count = std::min(most, tile_count(batch) - t);
    fill_tiles(g, gate, batch, w.rows, t, count, g_tiles.get(), run);
    if (out.dx != nullptr)
      multiply_tiles<T>(g_tiles.get(), batch, t, count, transposed, ordered.get(), nullptr, false, out.dx, run);
    if (out.dvalues != nullptr) {
      fill_tiles<T>(x, nullptr, batch, w.cols, t, count, x_tiles.get(), run);
      sample_tiles(g_tiles.get(), x_tiles.get(), batch, t, count, w, out.dvalues, run);
    }
    for (int64_t i = 0; i < count && out.dbias != nullptr; ++i) {
      const int lanes = lanes_of(tile_batch(batch, t + i));
      for (int64_t r = 0; r < w.rows; ++r) {
        const T* row = g_tiles.get() + i * tile_width * w.rows + r * lanes;
        T sums[16] = {};
        for (int l = 0; l < lanes; l += 16)
          for (int j = 0; j < 16; ++j) sums[j] += row[l + j];
        for (int half = 8; half > 0; half /= 2)
          for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
        out.dbias[r] += sums[0];
      }
    }
  }
  return !run.watch.stopped();
}

template bool spmm(const float*, int64_t, const Structure&, const float*, const int32_t*, const float*, bool,
                   float*, const Run&);
template bool spmm(const double*, int64_t, const Structure&, const double*, const int32_t*, const double*, bool,
                   double*, const Run&);
template bool spmm_backward(const float*, const float*, const float*, int64_t, const Structure&, const Structure&,
                            const float*, const int32_t*, const Gradients<float>&, const Run&);
template bool spmm_backward(const double*, const double*, const double*, int64_t, const Structure&,
                            const Structure&, const double*, const int32_t*, const Gradients<double>&, const Run&);

}  // namespace lotterykit
