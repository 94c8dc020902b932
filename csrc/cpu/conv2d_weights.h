// The kept weights of a sparse convolution as its kernels take them: where each meets a tile, rows cut into parts.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "conv2d.h"
#include "conv2d_kernels.h"
#include "conv2d_layout.h"
#include "tiles.h"

namespace lotterykit {

constexpr int64_t bytes_per_part = 16 << 10;  // half of a first cache
constexpr int64_t weights_per_part = 16;      // of a row: fewer do not pay for another pass over the sums

// What kept weight (row, column) of W means: its input channel, phase and step.
struct Place {
  int64_t channel, phase, step_h, step_w;
};

class Places {
 public:
  Places(const Convolution& conv, const Geometry& geometry, const Structure& w)
      : per_group_(std::max<int64_t>(1, conv.out_channels / conv.groups)),
        channels_(conv.in_channels / conv.groups) {
    table_.reserve(size_t(w.cols));
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t h = 0; h < conv.kernel_height; ++h)
        for (int64_t v = 0; v < conv.kernel_width; ++v) {
          const int64_t down = h * conv.dilation_height, right = v * conv.dilation_width;
          table_.push_back({c, down % conv.stride_height * geometry.x.width.phases + right % conv.stride_width,
                            down / conv.stride_height, right / conv.stride_width});
        }
  }
  // Of a column of W; `channel` counts from the first of the row's group.
  const Place& operator[](int64_t column) const { return table_[size_t(column)]; }
  int64_t first_channel(int64_t row) const { return row / per_group_ * channels_; }

 private:
  int64_t per_group_, channels_;
  std::vector<Place> table_;
};

// The kept weights of one product, as the kernels take them: rows in order, each in parts of its input channels.
struct Rows {
  std::vector<int32_t> bounds;
  int64_t rows, parts;

  // `channels_of(r, k)` is the input channel of weight k of row r, rising within a row; row r's weights are
  // [first[r], first[r + 1]). `block` is the bytes of one channel that a block of sums meets.
  template <typename ChannelOf>
  Rows(const int32_t* first, int64_t rows_, int64_t channels, int64_t block, ChannelOf channel_of) : rows(rows_) {
    const int64_t wanted = (channels * block + bytes_per_part - 1) / bytes_per_part;
    const int64_t most = rows == 0 ? 1 : (first[rows] - first[0]) / (rows * weights_per_part);
    parts = std::max<int64_t>(1, std::min(wanted, most));
    const int64_t each = (channels + parts - 1) / parts;
    bounds.resize(size_t((parts + 1) * rows));
    for (int64_t r = 0; r < rows; ++r) {
      int32_t k = first[r];
      for (int64_t p = 0; p < parts; ++p) {
        bounds[size_t(p * rows + r)] = k;
        while (p + 1 < parts && k < first[r + 1] && channel_of(r, k) < (p + 1) * each) ++k;
      }
      bounds[size_t(parts * rows + r)] = first[r + 1];
    }
  }
};

template <typename T>
struct Weights {
  const int32_t* bounds;
  int64_t rows, parts;
  const int64_t* offsets;
  const T* values;

  Taps<T> part(int64_t p) const { return {bounds + p * rows, bounds + (p + 1) * rows, offsets, values}; }
};

// Bytes of one channel of `layout` that a block of most_vectors vectors meets.
template <typename T>
int64_t block_bytes(const Layout& layout, const Convolution& conv, int vector) {
  const int64_t down = (conv.kernel_height - 1) * conv.dilation_height + 1;
  const int64_t right = (conv.kernel_width - 1) * conv.dilation_width + 1;
  const int64_t entries = down * (most_vectors * vector + right * layout.lanes);
  return std::min(layout.channel(), entries) * int64_t(sizeof(T));
}

// Where each kept weight meets x, as an offset in a tile; marks the channels that any meets.
inline void offsets_in_x(const Geometry& geometry, const Places& places, const Structure& w, int64_t* offsets,
                  std::vector<uint8_t>& used) {
  const Layout& x = geometry.x;
  std::vector<int64_t> of_column(size_t(w.cols));
  for (int64_t c = 0; c < w.cols; ++c)
    of_column[size_t(c)] = places[c].channel * x.channel() + places[c].phase * x.plane +
                           (places[c].step_h * x.pitch + places[c].step_w) * x.lanes;
  for (int64_t r = 0; r < w.rows; ++r) {
    const int64_t channel = places.first_channel(r), base = channel * x.channel();
    for (int64_t k = w.first(0, r); k < w.last(0, r); ++k) {
      offsets[k] = base + of_column[size_t(w.columns[k])];
      used[size_t(channel + places[w.columns[k]].channel)] = 1;
    }
  }
}

// The kept weights by input channel and phase, with their offsets in a tile of g; weight k of W is places[k] here.
template <typename T>
struct Turned {
  std::vector<int32_t> first;
  Scratch<int32_t> places;
  Scratch<int64_t> offsets;
  Scratch<T> values;

  Turned(const Convolution& conv, const Geometry& geometry, const Places& meant, const Structure& w, const T* given)
      : first(size_t(conv.in_channels * geometry.dx.phases() + 1)),
        places(w.nnz()),
        offsets(w.nnz()),
        values(w.nnz()) {
    const Layout& g = geometry.g;
    const int64_t phases = geometry.dx.phases();
    const int64_t top = geometry.dx.height.first + g.height.shift, left = geometry.dx.width.first + g.width.shift;
    std::vector<int64_t> row_of(size_t(w.cols)), of_column(size_t(w.cols));
    for (int64_t c = 0; c < w.cols; ++c) {
      row_of[size_t(c)] = meant[c].channel * phases + meant[c].phase;
      of_column[size_t(c)] = ((top - meant[c].step_h) * g.pitch + left - meant[c].step_w) * g.lanes;
    }
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t k = w.first(0, r), base = meant.first_channel(r) * phases; k < w.last(0, r); ++k)
        ++first[size_t(base + row_of[size_t(w.columns[k])] + 1)];
    for (size_t r = 1; r < first.size(); ++r) first[r] += first[r - 1];
    std::vector<int32_t> next(first.begin(), first.end() - 1);
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t k = w.first(0, r), base = meant.first_channel(r) * phases; k < w.last(0, r); ++k) {
        const int32_t to = next[size_t(base + row_of[size_t(w.columns[k])])]++;
        offsets.get()[to] = r * g.channel() + of_column[size_t(w.columns[k])];
        values.get()[to] = given[k];
        places.get()[k] = to;
      }
  }
};

}  // namespace lotterykit
