// Batch tiles: the layout in which sparse products run, and the moves into it and out of it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
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

// Uninitialised memory for whole vectors, aligned to 64 bytes. The calling thread keeps a few blocks of up to
// kept_bytes for its next call: fresh pages from the system cost more than a small product.
class Blocks {
 public:
  static constexpr size_t kept_bytes = size_t(4) << 20, kept_blocks = 4;

  void* take(size_t& bytes) {
    for (size_t i = 0; i < count_; ++i)
      if (blocks_[i].bytes >= bytes) {
        const Block block = blocks_[i];
        blocks_[i] = blocks_[--count_];
        bytes = block.bytes;
        return block.data;
      }
    return std::aligned_alloc(64, bytes);
  }
  void give(void* data, size_t bytes) {
    if (bytes > kept_bytes) return std::free(data);
    if (count_ == kept_blocks) {  // the smallest makes room
      size_t least = 0;
      for (size_t i = 1; i < count_; ++i)
        if (blocks_[i].bytes < blocks_[least].bytes) least = i;
      if (blocks_[least].bytes >= bytes) return std::free(data);
      std::free(blocks_[least].data);
      blocks_[least] = {data, bytes};
      return;
    }
    blocks_[count_++] = {data, bytes};
  }
  ~Blocks() {
    for (size_t i = 0; i < count_; ++i) std::free(blocks_[i].data);
  }
  static Blocks& of_this_thread() {
    thread_local Blocks blocks;
    return blocks;
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  Block blocks_[kept_blocks];
  size_t count_ = 0;
};

template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : bytes_((size_t(std::max<int64_t>(count, 1)) * sizeof(T) + 63) / 64 * 64) {
    data_ = static_cast<T*>(Blocks::of_this_thread().take(bytes_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { Blocks::of_this_thread().give(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

// Features [from, to) of one tile from x, whose first example it is: row-major, `stride` entries a row.
// `gate` is null, or laid out as x: where gate <= 0 the tile gets 0 (the gradient of a ReLU with output gate).
template <typename T>
void to_tile(const T* x, const T* gate, int64_t stride, int examples, int64_t from, int64_t to, T* tile, Isa isa);

// `rows` features of a tile [rows][lanes] to y, row-major with `stride` entries a row.
template <typename T>
void from_tile(const T* tile, int lanes, int examples, int64_t rows, T* y, int64_t stride, Isa isa);

}  // namespace lotterykit
