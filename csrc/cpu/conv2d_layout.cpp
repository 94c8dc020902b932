#include "conv2d_layout.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "conv2d_kernels.h"
#include "tiles.h"

namespace lotterykit {
namespace {

constexpr double most_entries = 1e13;

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

int64_t best_lanes(const Convolution& conv, int64_t pitch, int vector) {
  int64_t best = 1;
  double least = cost_of(conv, pitch, 1, vector);
  for (int64_t lanes = std::max(8, vector); lanes <= 64; lanes *= 2)
    if (const double cost = cost_of(conv, pitch, lanes, vector); cost < least) best = lanes, least = cost;
  return best;
}

// Source indices of phase `p`, from the first that has a place: they stand at consecutive places.
struct Span {
  int64_t source, place, count;
};

Span span_of(const Axis& axis, int64_t p) {
  int64_t source = p - axis.shift % axis.stride;
  if (source < 0) source += axis.stride;
  const int64_t place = (source + axis.shift) / axis.stride - axis.first;
  const int64_t left = (axis.size - source + axis.stride - 1) / axis.stride;
  return {source, place, std::max<int64_t>(0, std::min(left, axis.length - place))};
}

template <typename T>
LOTTERYKIT_INLINE void copy_entries(const T* in, int64_t count, T* out) {
  constexpr int64_t step = 32 / sizeof(T);  // memcpy of a known size is two instructions; a call costs more
  int64_t i = 0;
  for (; i + step <= count; i += step) std::memcpy(out + i, in + i, sizeof(T) * step);
  for (; i < count; ++i) out[i] = in[i];
}

// Every `step`-th entry of a row or to a row.
template <typename T>
void gather_entries(const T* in, int64_t step, int64_t count, T* out) {
  if (step == 1) return copy_entries(in, count, out);
  for (int64_t i = 0; i < count; ++i) out[i] = in[i * step];
}
template <typename T>
void scatter_entries(const T* in, int64_t count, T* out, int64_t step) {
  if (step == 1) return copy_entries(in, count, out);
  for (int64_t i = 0; i < count; ++i) out[i * step] = in[i];
}

// Zeros on all sides of the image in a phase's plane.
template <typename T>
void clear_around(const Layout& layout, const Span& h, const Span& w, T* plane) {
  T* end = plane;
  for (int64_t r = 0; r < h.count && w.count > 0; ++r) {
    T* row = plane + ((h.place + r) * layout.pitch + w.place) * layout.lanes;
    std::fill(end, row, T(0));
    end = row + w.count * layout.lanes;
  }
  std::fill(end, plane + layout.plane, T(0));
}

// Runs body(phase, height span, width span).
template <typename Body>
void for_each_phase(const Layout& layout, Body body) {
  for (int64_t ph = 0; ph < layout.height.phases; ++ph)
    for (int64_t pw = 0; pw < layout.width.phases; ++pw)
      body(ph * layout.width.phases + pw, span_of(layout.height, ph), span_of(layout.width, pw));
}

}  // namespace

Geometry::Geometry(const Convolution& c, int vector_) : vector(vector_) {
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
  lanes = best_lanes(c, pitch, vector);
  tiles = (c.batch + lanes - 1) / lanes;
  const auto plane = [&](const Axis& h, const Axis& w, int64_t row) {  // and what a vector reads beyond its end
    const double entries = double(h.length + 1) * double(std::max(w.length, row) + vector) * double(lanes);
    if (entries * double(h.phases * w.phases) * double(c.in_channels + c.out_channels) > most_entries)
      throw std::bad_alloc();
    return (((h.length - 1) * row + std::max(w.length, row)) * lanes + vector + 15) / 16 * 16;
  };
  const Axis yh{c.out_height, 0, 1, 1, 0, c.out_height}, yw{c.out_width, 0, 1, 1, 0, c.out_width};
  const int64_t y_pitch = lanes == 1 ? pitch : c.out_width, dx_pitch = lanes == 1 ? pitch : dw.length;
  x = {lanes, c.in_channels, xh, xw, pitch, plane(xh, xw, pitch)};
  g = {lanes, c.out_channels, gh, gw, pitch, plane(gh, gw, pitch)};
  y = {lanes, c.out_channels, yh, yw, y_pitch, plane(yh, yw, y_pitch)};
  dx = {lanes, c.in_channels, dh, dw, dx_pitch, plane(dh, dw, dx_pitch)};
  g_first = (gh.shift * pitch + gw.shift) * lanes;
}

template <typename T>
void fill(const T* source, bool channels_last, const Layout& layout, int64_t first, int64_t images, int64_t from,
          int64_t to, const uint8_t* used, T* tile, Isa isa) {
  const int64_t height = layout.height.size, width = layout.width.size, pixels = height * width;
  const int64_t step = layout.width.stride, lanes = layout.lanes;
  const T* image = source + first * layout.channels * pixels;
  if (channels_last) {
    if (images < lanes) std::fill(tile, tile + (to - from) * layout.channel(), T(0));
    for_each_phase(layout, [&](int64_t phase, const Span& h, const Span& w) {
      for (int64_t c = 0; c < to - from && images == lanes; ++c)
        clear_around(layout, h, w, tile + c * layout.channel() + phase * layout.plane);
      for (int64_t r = 0; r < h.count; ++r) {
        const T* in = image + ((h.source + r * layout.height.stride) * width + w.source) * layout.channels + from;
        T* out = tile + phase * layout.plane + ((h.place + r) * layout.pitch + w.place) * lanes;
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
  const bool by_rows = lanes == 1 || (step == 1 && width >= 8);  // short rows are turned as one
  const Scratch<T> turned(by_rows ? 0 : pixels * lanes);
  for (int64_t c = from; c < to; ++c) {
    if (!used[c]) continue;
    const T* in = image + c * pixels;
    T* channel = tile + (c - from) * layout.channel();
    if (images < lanes) std::fill(channel, channel + layout.channel(), T(0));
    if (!by_rows) {
      if (images < lanes) std::fill(turned.get(), turned.get() + pixels * lanes, T(0));
      transpose(in, layout.channels * pixels, images, pixels, turned.get(), lanes, isa);
    }
    for_each_phase(layout, [&](int64_t phase, const Span& h, const Span& w) {
      if (images == lanes) clear_around(layout, h, w, channel + phase * layout.plane);
      for (int64_t r = 0; r < h.count; ++r) {
        const int64_t from_pixel = (h.source + r * layout.height.stride) * width + w.source;
        T* out = channel + phase * layout.plane + ((h.place + r) * layout.pitch + w.place) * lanes;
        const T* row = turned.get() + from_pixel * lanes;
        if (lanes == 1) gather_entries(in + from_pixel, step, w.count, out);
        else if (by_rows) transpose(in + from_pixel, layout.channels * pixels, images, w.count, out, lanes, isa);
        else if (step == 1) copy_entries(row, w.count * lanes, out);
        else
          for (int64_t i = 0; i < w.count; ++i) copy_entries(row + i * step * lanes, lanes, out + i * lanes);
      }
    });
  }
}

template <typename T>
void drain(const T* tile, const Layout& layout, int64_t first, int64_t images, int64_t from, int64_t to, int64_t row,
           int64_t rows, T* target, bool channels_last, Isa isa) {
  const int64_t height = layout.height.size, width = layout.width.size, pixels = height * width;
  const int64_t step = layout.width.stride, lanes = layout.lanes;
  T* image = target + first * layout.channels * pixels;
  if (!channels_last && leaves_by_rows(layout)) {  // laid out as images already
    for (int64_t c = from; c < to; ++c)
      transpose(tile + (c - from) * layout.channel(), lanes, rows * width, images, image + c * pixels + row * width,
                layout.channels * pixels, isa);
    return;
  }
  const int64_t in_turned = channels_last || lanes == 1 ? 0 : pixels * lanes;
  const Scratch<T> turned(in_turned);
  if (layout.height.phases < layout.height.stride || layout.width.phases < layout.width.stride)
    std::fill(turned.get(), turned.get() + in_turned, T(0));  // pixels that no tap reads
  const auto move_row = [&](const T* in, int64_t pixel, int64_t count, int64_t c) {
    if (lanes == 1) return scatter_entries(in, count, image + c * pixels + pixel, step);
    T* out = turned.get() + pixel * lanes;
    for (int64_t i = 0; i < count; ++i) copy_entries(in + i * lanes, lanes, out + i * step * lanes);
  };
  const auto move_last = [&](const T* in, int64_t pixel, int64_t count) {
    T* out = image + pixel * layout.channels + from;
    if (lanes == 1) return transpose(in, layout.channel(), to - from, count, out, step * layout.channels, isa);
    for (int64_t i = 0; i < count; ++i)
      transpose(in + i * lanes, layout.channel(), to - from, images, out + i * step * layout.channels,
                pixels * layout.channels, isa);
  };
  for (int64_t c = from; c < (channels_last ? std::min(to, from + 1) : to); ++c) {
    for_each_phase(layout, [&](int64_t phase, const Span& h, const Span& w) {
      for (int64_t r = 0; r < h.count; ++r) {
        const int64_t place = h.place + r - row;
        if (place < 0 || place >= rows) continue;
        const T* plane = tile + (c - from) * layout.channel() + phase * layout.plane;
        const T* in = plane + (place * layout.pitch + w.place) * lanes;
        const int64_t pixel = (h.source + r * layout.height.stride) * width + w.source;
        if (channels_last) move_last(in, pixel, w.count);
        else move_row(in, pixel, w.count, c);
      }
    });
    if (!channels_last && lanes > 1)
      transpose(turned.get(), lanes, pixels, images, image + c * pixels, layout.channels * pixels, isa);
  }
}

template void fill(const float*, bool, const Layout&, int64_t, int64_t, int64_t, int64_t, const uint8_t*, float*,
                   Isa);
template void fill(const double*, bool, const Layout&, int64_t, int64_t, int64_t, int64_t, const uint8_t*, double*,
                   Isa);
template void drain(const float*, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float*, bool,
                    Isa);
template void drain(const double*, const Layout&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, double*, bool,
                    Isa);

}  // namespace lotterykit
