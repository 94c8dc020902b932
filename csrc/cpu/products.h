// The two products on tiles, which the ops of spmm.h are made of.
#pragma once
#include "spmm.h"
#include "tiles.h"

namespace lotterykit {

constexpr int64_t rows_per_unit = 64;       // a unit's part of y stays in the first cache
constexpr int64_t work_per_thread = 1 << 20;  // multiplications: fewer do not pay for waking a thread

inline int64_t units_of(int64_t rows) { return (rows + rows_per_unit - 1) / rows_per_unit; }

// Threads that a call with this many multiplications deserves.
inline int threads_for(double work, int threads) {
  return int(std::clamp<double>(work / double(work_per_thread), 1, std::max(threads, 1)));
}

// Rows [from, to) of W times a tile [cols][lanes]: out [to - from][lanes].
template <typename T>
void product_rows(const T* tile, int lanes, const Structure& w, const T* values, const T* bias, bool relu,
                  int64_t from, int64_t to, T* out, Isa isa);

// Kept places of rows [from, to): dvalues += g x over the lanes of a tile; with `first`, = instead.
template <typename T>
void sampled_rows(const T* g_tile, const T* x_tile, int lanes, const Structure& w, int64_t from, int64_t to,
                  bool first, T* dvalues, Isa isa);

// Tiles in flight at once: enough for the threads, few enough for the second cache of one.
inline int64_t tiles_at_once(int64_t batch, int threads) {
  return std::min<int64_t>(tile_count(batch), threads == 1 ? 1 : 2 * int64_t(threads));
}

// Tiles [first, first + count) of x [batch, features], one after the other in `tiles`.
template <typename T>
void fill_tiles(const T* x, const T* gate, int64_t batch, int64_t features, int64_t first, int64_t count, T* tiles,
                const Run& run) {
  constexpr int64_t piece = 256;
  const int64_t pieces = (features + piece - 1) / piece;
  for_each(count * pieces, run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t t = unit / pieces, from = unit % pieces * piece, at = (first + t) * tile_width * features;
    to_tile(x + at, gate == nullptr ? nullptr : gate + at, features, tile_batch(batch, first + t), from,
            std::min(features, from + piece), tiles + t * tile_width * features, run.isa);
  });
}

// spmm from tiles: y is that of the whole batch.
template <typename T>
void multiply_tiles(const T* tiles, int64_t batch, int64_t first, int64_t count, const Structure& w,
                    const T* values, const T* bias, bool relu, T* y, const Run& run) {
  const int64_t units = units_of(w.rows);
  const Scratch<T> parts(run.threads * rows_per_unit * tile_width);
  for_each(count * units, run.threads, run.watch, [&](int thread, int64_t unit) {
    const int64_t t = unit / units, from = unit % units * rows_per_unit;
    const int64_t to = std::min(w.rows, from + rows_per_unit);
    const int examples = tile_batch(batch, first + t), lanes = lanes_of(examples);
    T* part = parts.get() + thread * rows_per_unit * tile_width;
    product_rows(tiles + t * tile_width * w.cols, lanes, w, values, bias, relu, from, to, part, run.isa);
    from_tile(part, lanes, examples, to - from, y + (first + t) * tile_width * w.rows + from, w.rows, run.isa);
  });
}

// Each kept place sums over the tiles in their order, whatever the number of threads.
template <typename T>
void sample_tiles(const T* g_tiles, const T* x_tiles, int64_t batch, int64_t first, int64_t count,
                  const Structure& w, T* dvalues, const Run& run) {
  for_each(units_of(w.rows), run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t from = unit * rows_per_unit, to = std::min(w.rows, from + rows_per_unit);
    for (int64_t t = 0; t < count; ++t)
      sampled_rows(g_tiles + t * tile_width * w.rows, x_tiles + t * tile_width * w.cols,
                   lanes_of(tile_batch(batch, first + t)), w, from, to, first + t == 0, dvalues, run.isa);
  });
}

// values[order[k]] for every k: a copy in the order of the transposed structure.
template <typename T>
void reorder(const T* values, const int32_t* order, int64_t nnz, T* out, const Run& run) {
  constexpr int64_t piece = 1 << 16;
  for_each((nnz + piece - 1) / piece, run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t last = std::min(nnz, (unit + 1) * piece);
    for (int64_t k = unit * piece; k < last; ++k) out[k] = values[order[k]];
  });
}

}  // namespace lotterykit
