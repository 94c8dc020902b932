// The inner layout of the sparse convolution, and the moves between it and images.
#pragma once
#include <cstdint>

#include "conv2d.h"
#include "runtime.h"

namespace lotterykit {

// Source index i of `size` lies in phase (i + shift) % stride at place (i + shift) / stride - first, of `length`
// places: a convolution of any stride reads each phase one step at a time. Only the first `phases` are stored: no
// tap reads the others.
struct Axis {
  int64_t size, shift, stride, phases, first, length;
};

// Images [batch, channels, height, width] as [tile][channel][phase][row * pitch + column][lane]: `lanes` images make
// a tile, of which `rows` rows of places are held at once, and a vector covers lanes, or, where lanes is 1, columns
// and the zeros between rows. Strides in entries.
struct Layout {
  int64_t lanes, channels;
  Axis height, width;
  int64_t pitch, rows, plane;

  int64_t phases() const { return height.phases * width.phases; }
  int64_t channel() const { return phases() * plane; }
  int64_t tile() const { return channels * channel(); }
};

// How one call of the convolution is laid out; the same for forward and backward. Rows of y that are computed
// together need few enough rows of x for a second cache, and those of dx of g.
struct Geometry {
  Layout x, g, y, dx;      // x, and y's gradient g, with zeros around; y, dx: without any
  int64_t lanes, tiles;
  int vector;              // entries of a vector

  // `bytes` are those of an entry. Throws std::bad_alloc where a tile is larger than any memory.
  Geometry(const Convolution& conv, int vector, int bytes);
};

// A stretch of a plane for one call of a kernel.
struct Block {
  int64_t in, out;  // first entry in a plane with zeros, and in one without
  int vectors;
};

// Channels [from, to) of images [first, first + images) of `source`, a batch in `order`, into a tile whose channel
// `from` stands at `tile`: the rows of places from `row` on, of which the first `kept` are there already. Channels
// that `used` does not name keep what they held. Lanes without an image hold 0.
template <typename T>
void fill(const T* source, int64_t batch, Order order, const Layout& layout, int64_t first, int64_t images,
          int64_t from, int64_t to, int64_t row, int64_t kept, const uint8_t* used, T* tile, Isa isa);

// Whether images can leave a few rows at a time.
inline bool leaves_by_rows(const Layout& layout) {
  return layout.lanes > 1 && layout.height.stride == 1 && layout.width.stride == 1;
}

// The way back: channels [from, to), the first of which stands at `tile`, to images of `target`. The tile holds
// `rows` rows of the plane from row `row` on: all, or some where leaves_by_rows.
template <typename T>
void drain(const T* tile, const Layout& layout, int64_t first, int64_t images, int64_t from, int64_t to, int64_t row,
           int64_t rows, T* target, int64_t batch, Order order, Isa isa);

// Whether images of a batch in `order` stand as a layout without zeros has them, but for the distance of pixels:
// they are then read and written where they are.
inline bool stands_in_place(const Layout& layout, int64_t batch, Order order, int vector) {
  return order == Order::batch_last && leaves_by_rows(layout) && batch % layout.lanes == 0 &&
         layout.lanes % vector == 0;
}

}  // namespace lotterykit
