#include "conv2d_layout.h"

#include <algorithm>
#include <new>

#include "conv2d_kernels.h"
#include "tiles.h"

namespace lotterykit {
namespace {

constexpr double most_entries = 1e13;
constexpr int64_t bytes_together = 512 << 10;  // of the rows that are held at once: of a second cache
constexpr int64_t vectors_together = 64;        // of a channel, at least: all weights are read for them

// Zeros after a row that also serve the next row as those before it.
int64_t shared_zeros(const Axis& axis) {
  if (axis.stride != 1) return 0;
  const int64_t before = axis.shift - axis.first, after = axis.length - before - axis.size;
  return std::max<int64_t>(0, std::min(before, after));
}

// Time of a tap over one image in half cycles: a block of few vectors waits for its sums.
double cost_of(const Convolution& conv, int64_t pitch, int64_t lanes, int vector) {
  const int64_t runs = lanes == 1 ? 1 : conv.out_height;
  const int64_t run = lanes == 1 ? (conv.out_height - 1) * pitch + conv.out_width : conv.out_width * lanes;
  const int64_t vectors = (run + vector - 1) / vector, blocks = (vectors + most_vectors - 1) / most_vectors;
  const double taken = double(blocks) * std::max(8.0, double(vectors) / double(blocks) + 2.0);
  const int64_t tiles = (conv.batch + lanes - 1) / lanes;
  return taken * double(runs) * double(tiles);
}

// `least`: lanes that are moved well.
int64_t best_lanes(const Convolution& conv, int64_t pitch, int vector, int64_t least_lanes) {
  int64_t best = 1;
  double least = cost_of(conv, pitch, 1, vector);
  for (int64_t lanes = least_lanes; lanes <= 64; lanes *= 2)
    if (const double cost = cost_of(conv, pitch, lanes, vector); cost < least) best = lanes, least = cost;
  return best;
}

// Rows of a result of `vectors` each that are computed together, given what each of them and the `reach` rows beside
// them take.
int64_t rows_together(int64_t rows, int64_t vectors, int64_t reach, int64_t bytes_of_row) {
  const int64_t fit = bytes_together / std::max<int64_t>(1, bytes_of_row) - reach;
  const int64_t least = (vectors_together + vectors - 1) / vectors;
  return std::min(rows, std::max(fit, least));
}

// Source indices of phase `p`, from the first that has a place: they stand at consecutive places.
struct Span {
  int64_t source, place, count;

  // What of it stands in `rows` places from place `row` on, counted from there.
  Span within(int64_t row, int64_t rows, int64_t stride) const {
    const int64_t skipped = std::min(count, std::max<int64_t>(0, row - place));
    const int64_t at = place + skipped - row;
    return {source + skipped * stride, at, std::max<int64_t>(0, std::min(count - skipped, rows - at))};
  }
};

Span span_of(const Axis& axis, int64_t p) {
  int64_t source = p - axis.shift % axis.stride;
  if (source < 0) source += axis.stride;
  const int64_t place = (source + axis.shift) / axis.stride - axis.first;
  const int64_t left = (axis.size - source + axis.stride - 1) / axis.stride;
  return {source, place, std::max<int64_t>(0, std::min(left, axis.length - place))};
}

// Zeros on all sides of the image in what a phase's plane holds from `rows` on.
template <typename T>
void clear_around(const Layout& layout, const Span& h, const Span& w, T* rows, T* plane_end) {
  T* end = rows;
  for (int64_t r = 0; r < h.count && w.count > 0; ++r) {
    T* row = rows + ((h.place + r) * layout.pitch + w.place) * layout.lanes;
    std::fill(end, row, T(0));
    end = row + w.count * layout.lanes;
  }
  std::fill(end, plane_end, T(0));
}

// Runs body(phase, height span in the rows of places [row, row + rows), width span).
template <typename Body>
void for_each_phase(const Layout& layout, int64_t row, int64_t rows, Body body) {
  for (int64_t ph = 0; ph < layout.height.phases; ++ph)
    for (int64_t pw = 0; pw < layout.width.phases; ++pw)
      body(ph * layout.width.phases + pw, span_of(layout.height, ph).within(row, rows, layout.height.stride),
           span_of(layout.width, pw));
}

}  // namespace

Geometry::Geometry(const Convolution& c, int vector_, int bytes) : vector(vector_) {
  const int64_t reach_h = (c.kernel_height - 1) * c.dilation_height;
  const int64_t reach_w = (c.kernel_width - 1) * c.dilation_width;
  const int64_t steps_h = reach_h / c.stride_height, steps_w = reach_w / c.stride_width;
  const Axis xh{c.height, c.padding_height, c.stride_height, std::min(c.stride_height, reach_h + 1), 0,
                c.out_height + steps_h};
  const Axis xw{c.width, c.padding_width, c.stride_width, std::min(c.stride_width, reach_w + 1), 0,
                c.out_width + steps_w};
  // dx is computed at the places between the first and the last that hold a pixel; g stands so far down that
  // the last tap of the first such place is row 0, or further up where nothing reaches it.
  const auto undo = [](const Axis& x) {
    const int64_t first = x.shift / x.stride, last = (x.shift + std::max<int64_t>(x.size, 1) - 1) / x.stride;
    return Axis{x.size, x.shift, x.stride, x.phases, first, last - first + 1};
  };
  const Axis dh = undo(xh), dw = undo(xw);
  const auto around = [](int64_t size, int64_t steps, const Axis& d) {
    const int64_t top = std::max<int64_t>(0, steps - d.first);
    return Axis{size, top, 1, 1, 0, top + std::max(size, d.first + d.length)};
  };
  const Axis gh = around(c.out_height, steps_h, dh), gw = around(c.out_width, steps_w, dw);
  const int64_t pitch = std::max(xw.length - shared_zeros(xw), gw.length - shared_zeros(gw));
  const int line = c.order == Order::batch_last ? 64 / bytes : 0;  // a part of it costs as much as the whole
  lanes = best_lanes(c, pitch, vector, std::max({8, vector, line}));
  tiles = (c.batch + lanes - 1) / lanes;
  const auto layout = [&](int64_t channels, const Axis& h, const Axis& w, int64_t row, int64_t rows) {
    // and what a vector reads beyond its end
    const double entries = double(h.length + 1) * double(std::max(w.length, row) + vector) * double(lanes);
    if (entries * double(h.phases * w.phases) * double(c.in_channels + c.out_channels) > most_entries)
      throw std::bad_alloc();
    const int64_t plane = (((rows - 1) * row + std::max(w.length, row)) * lanes + vector + 15) / 16 * 16;
    return Layout{lanes, channels, h, w, row, rows, plane};
  };
  const Axis yh{c.out_height, 0, 1, 1, 0, c.out_height}, yw{c.out_width, 0, 1, 1, 0, c.out_width};
  const int64_t y_pitch = lanes == 1 ? pitch : c.out_width, dx_pitch = lanes == 1 ? pitch : dw.length;
  y = layout(c.out_channels, yh, yw, y_pitch, yh.length);
  dx = layout(c.in_channels, dh, dw, dx_pitch, dh.length);
  x = layout(c.in_channels, xh, xw, pitch, xh.length);
  g = layout(c.out_channels, gh, gw, pitch, gh.length);
  const auto halve = [&](Layout& in, Layout& out, int64_t reach) {
    if (!leaves_by_rows(out)) return;
    const int64_t vectors = (out.width.length * lanes + vector - 1) / vector;
    const int64_t bytes_of_row = in.channels * in.phases() * pitch * lanes * bytes;
    const int64_t rows = rows_together(out.height.length, vectors, reach, bytes_of_row);
    if (rows == out.height.length) return;
    const int64_t count = (out.height.length + rows - 1) / rows;  // as even as can be
    out = layout(out.channels, out.height, out.width, out.pitch, (out.height.length + count - 1) / count);
    in = layout(in.channels, in.height, in.width, pitch, std::min(in.height.length, out.rows + reach));
  };
  halve(x, y, steps_h);
  halve(g, dx, dh.first + gh.shift);
}

template <typename T>
void fill(const T* source, int64_t batch, Order order, const Layout& layout, int64_t first, int64_t images,
          int64_t from, int64_t to, int64_t row, int64_t kept, const uint8_t* used, T* tile, Isa isa) {
  const int64_t height = layout.height.size, width = layout.width.size, pixels = height * width;
  const int64_t step = layout.width.stride, lanes = layout.lanes;
  const int64_t begins = kept * layout.pitch * lanes, count = layout.rows - kept;
  const T* image = source + first * layout.channels * pixels;
  if (order == Order::channels_last) {
    for_each_phase(layout, row + kept, count, [&](int64_t phase, const Span& h, const Span& w) {
      for (int64_t c = 0; c < to - from; ++c) {
        T* plane = tile + c * layout.channel() + phase * layout.plane;
        if (images < lanes) std::fill(plane + begins, plane + layout.plane, T(0));
        else clear_around(layout, h, w, plane + begins, plane + layout.plane);
      }
      for (int64_t r = 0; r < h.count; ++r) {
        const T* in = image + ((h.source + r * layout.height.stride) * width + w.source) * layout.channels + from;
        T* out = tile + phase * layout.plane + begins + ((h.place + r) * layout.pitch + w.place) * lanes;
        if (lanes == 1) {
          transpose(in, step * layout.channels, w.count, to - from, out, layout.channel(), isa);
          continue;
        }
        for (int64_t i = 0; i < w.count; ++i)
          transpose(in + i * step * layout.channels, pixels * layout.channels, images, to - from, out + i * lanes,
                    layout.channel(), isa);
      }
    });
    return;
  }
  const bool turns = order == Order::channels_first && lanes > 1;
  const bool at_once = turns && (step > 1 || width < 8);  // short rows are turned as one
  const int64_t above = (row + kept + layout.height.first) * layout.height.stride - layout.height.shift;
  const int64_t begin = std::max<int64_t>(0, above);  // rows of the source that have places here
  const int64_t end = std::max(begin, std::min(height, above + count * layout.height.stride));
  const Scratch<T> turned(at_once ? (end - begin) * width * lanes : 0);
  for (int64_t c = from; c < to; ++c) {
    if (!used[c]) continue;
    const T* in = image + c * pixels;
    T* channel = tile + (c - from) * layout.channel();
    if (at_once) {
      if (images < lanes) std::fill(turned.get(), turned.get() + (end - begin) * width * lanes, T(0));
      transpose(in + begin * width, layout.channels * pixels, images, (end - begin) * width, turned.get(), lanes, isa);
    }
    for_each_phase(layout, row + kept, count, [&](int64_t phase, const Span& h, const Span& w) {
      T* plane = channel + phase * layout.plane;
      if (images < lanes) std::fill(plane + begins, plane + layout.plane, T(0));
      else clear_around(layout, h, w, plane + begins, plane + layout.plane);
      for (int64_t r = 0; r < h.count; ++r) {
        const int64_t pixel = (h.source + r * layout.height.stride) * width + w.source;
        T* out = plane + begins + ((h.place + r) * layout.pitch + w.place) * lanes;
        if (order == Order::batch_last) {
          const T* own = source + (c * pixels + pixel) * batch + first;
          move_pixels(own, step * batch, w.count, images, pixels * batch, out, lanes, isa);
        } else if (at_once) {
          const T* own = turned.get() + (pixel - begin * width) * lanes;
          move_pixels(own, step * lanes, w.count, lanes, 0, out, lanes, isa);
        } else if (turns) {
          transpose(in + pixel, layout.channels * pixels, images, w.count, out, lanes, isa);
        } else {
          move_pixels(in + pixel, step, w.count, 1, 0, out, 1, isa);
        }
      }
    });
  }
}

template <typename T>
void drain(const T* tile, const Layout& layout, int64_t first, int64_t images, int64_t from, int64_t to, int64_t row,
           int64_t rows, T* target, int64_t batch, Order order, Isa isa) {
  const int64_t height = layout.height.size, width = layout.width.size, pixels = height * width;
  const int64_t step = layout.width.stride, lanes = layout.lanes;
  T* image = target + first * layout.channels * pixels;
  const bool turns = order == Order::channels_first && lanes > 1;
  if (turns && leaves_by_rows(layout)) {  // laid out as images already
    for (int64_t c = from; c < to; ++c)
      transpose(tile + (c - from) * layout.channel(), lanes, rows * width, images, image + c * pixels + row * width,
                layout.channels * pixels, isa);
    return;
  }
  const int64_t in_turned = turns ? pixels * lanes : 0;
  const Scratch<T> turned(in_turned);
  if (layout.height.phases < layout.height.stride || layout.width.phases < layout.width.stride)
    std::fill(turned.get(), turned.get() + in_turned, T(0));  // pixels that no tap reads
  const auto move_row = [&](const T* in, int64_t pixel, int64_t count, int64_t c) {
    if (order == Order::batch_last)
      move_pixels(in, lanes, count, images, 0, target + (c * pixels + pixel) * batch + first, step * batch, isa);
    else if (turns)
      move_pixels(in, lanes, count, lanes, 0, turned.get() + pixel * lanes, step * lanes, isa);
    else
      move_pixels(in, 1, count, 1, 0, image + c * pixels + pixel, step, isa);
  };
  const auto move_last = [&](const T* in, int64_t pixel, int64_t count) {
    T* out = image + pixel * layout.channels + from;
    if (lanes == 1) return transpose(in, layout.channel(), to - from, count, out, step * layout.channels, isa);
    for (int64_t i = 0; i < count; ++i)
      transpose(in + i * lanes, layout.channel(), to - from, images, out + i * step * layout.channels,
                pixels * layout.channels, isa);
  };
  const bool last = order == Order::channels_last;
  for (int64_t c = from; c < (last ? std::min(to, from + 1) : to); ++c) {
    for_each_phase(layout, row, rows, [&](int64_t phase, const Span& h, const Span& w) {
      for (int64_t r = 0; r < h.count; ++r) {
        const T* plane = tile + (c - from) * layout.channel() + phase * layout.plane;
        const T* in = plane + ((h.place + r) * layout.pitch + w.place) * lanes;
        const int64_t pixel = (h.source + r * layout.height.stride) * width + w.source;
        if (last) move_last(in, pixel, w.count);
        else move_row(in, pixel, w.count, c);
      }
    });
    if (turns) transpose(turned.get(), lanes, pixels, images, image + c * pixels, layout.channels * pixels, isa);
  }
}

template void fill(const float*, int64_t, Order, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, const uint8_t*, float*, Isa);
template void fill(const double*, int64_t, Order, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, const uint8_t*, double*, Isa);
template void drain(const float*, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float*, int64_t,
                    Order, Isa);
template void drain(const double*, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double*,
                    int64_t, Order, Isa);

}  // namespace lotterykit
