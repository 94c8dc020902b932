// Batch tiles: the layout in which sparse products run, and the moves into it and out of it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "runtime.h"

namespace lotterykit {

// A batch [batch, features] is cut into tiles of 64 examples; a tile is stored [features][width], so that one
// kept weight meets `width` examples in consecutive vectors. The last tile is as narrow as its examples
// allow; lanes without an example hold 0.
constexpr int tile_width = 64;

inline int64_t tile_count(int64_t batch) { return (batch + tile_width - 1) / tile_width; }

// Examples in tile t, and the lanes that it is stored with: 16, 32 or 64.
inline int tile_batch(int64_t batch, int64_t t) {
  return int(std::min<int64_t>(tile_width, batch - t * tile_width));
}
inline int lanes_of(int examples) { return examples <= 16 ? 16 : examples <= 32 ? 32 : 64; }

// Uninitialised memory for whole vectors, aligned to 64 bytes.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (size_t(std::max<int64_t>(count, 1)) * sizeof(T) + 63) / 64 * 64;
    data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Features [from, to) of one tile from x, whose first example it is: row-major, `stride` entries a row.
// `gate` is null, or laid out as x: where gate <= 0 the tile gets 0 (the gradient of a ReLU with output gate).
template <typename T>
void to_tile(const T* x, const T* gate, int64_t stride, int examples, int64_t from, int64_t to, T* tile, Isa isa);

// `rows` features of a tile [rows][lanes] to y, row-major with `stride` entries a row.
template <typename T>
void from_tile(const T* tile, int lanes, int examples, int64_t rows, T* y, int64_t stride, Isa isa);

}  // namespace lotterykit
