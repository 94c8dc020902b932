// Tiles of images are moved into a layout in which every kept weight is one scalar times one stretch of entries
// (conv2d_layout.h); then a block of sums stays in registers over a row's kept weights. dx is the same product
// with the kept weights listed by input channel and phase; dvalues are dot products over the same stretches.
#include "conv2d.h"

#include <algorithm>
#include <vector>

#include "conv2d_kernels.h"
#include "conv2d_layout.h"
#include "products.h"

namespace lotterykit {
namespace {

constexpr int64_t channels_per_unit = 64;     // of the result: threads share them out
constexpr int64_t channels_per_piece = 32;    // of a tile, moved at once
constexpr int64_t bytes_per_part = 16 << 10;  // half of a first cache
constexpr int64_t weights_per_part = 8;       // of a row: fewer do not pay for another pass over the sums
constexpr int64_t blocks_per_group = 8;       // their sums for a unit of channels, 128 KiB, stay in a second cache

// Blocks over `rows` rows of the result from row `row` on, whose sums stay in the second cache; `out` of a block
// counts from there.
struct Group {
  int64_t row, rows;
  std::vector<Block> blocks;
};

// The groups that cover a plane of `out`; one where images leave as a whole. Where lanes is 1 a single run of
// entries covers all rows and what stands between them.
std::vector<Group> groups_of(const Layout& in, const Layout& out, int vector) {
  const int64_t rows = out.height.length, columns = out.width.length;
  const int64_t runs = out.lanes == 1 ? 1 : rows;
  const int64_t length = out.lanes == 1 ? (rows - 1) * out.pitch + columns : columns * out.lanes;
  const int64_t vectors = (length + vector - 1) / vector, count = (vectors + most_vectors - 1) / most_vectors;
  const int64_t together = leaves_by_rows(out) ? std::max<int64_t>(1, blocks_per_group / count) : rows;
  std::vector<Group> groups;
  for (int64_t row = 0; row < rows; row += together) {
    Group group{row, std::min(together, rows - row), {}};
    for (int64_t run = row; run < std::min(runs, row + together); ++run)
      for (int64_t i = 0; i < count; ++i) {  // as even as can be: few vectors wait for their sums
        const int64_t from = vectors * i / count, to = vectors * (i + 1) / count;
        group.blocks.push_back({run * in.pitch * in.lanes + from * vector,
                                (run - row) * out.pitch * out.lanes + from * vector, int(to - from)});
      }
    groups.push_back(std::move(group));
  }
  return groups;
}

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
void offsets_in_x(const Geometry& geometry, const Places& places, const Structure& w, int64_t* offsets,
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

// The kept weights by input channel and phase, with their offsets in a tile of g.
template <typename T>
struct Turned {
  std::vector<int32_t> first;
  Scratch<int64_t> offsets;
  Scratch<T> values;

  Turned(const Convolution& conv, const Geometry& geometry, const Places& places, const Structure& w, const T* given)
      : first(size_t(conv.in_channels * geometry.dx.phases() + 1)), offsets(w.nnz()), values(w.nnz()) {
    const Layout& g = geometry.g;
    const int64_t phases = geometry.dx.phases();
    const int64_t top = geometry.dx.height.first + g.height.shift, left = geometry.dx.width.first + g.width.shift;
    std::vector<int64_t> row_of(size_t(w.cols)), of_column(size_t(w.cols));
    for (int64_t c = 0; c < w.cols; ++c) {
      row_of[size_t(c)] = places[c].channel * phases + places[c].phase;
      of_column[size_t(c)] = ((top - places[c].step_h) * g.pitch + left - places[c].step_w) * g.lanes;
    }
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t k = w.first(0, r), base = places.first_channel(r) * phases; k < w.last(0, r); ++k)
        ++first[size_t(base + row_of[size_t(w.columns[k])] + 1)];
    for (size_t r = 1; r < first.size(); ++r) first[r] += first[r - 1];
    std::vector<int32_t> next(first.begin(), first.end() - 1);
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t k = w.first(0, r), base = places.first_channel(r) * phases; k < w.last(0, r); ++k) {
        const int32_t to = next[size_t(base + row_of[size_t(w.columns[k])])]++;
        offsets.get()[to] = r * g.channel() + of_column[size_t(w.columns[k])];
        values.get()[to] = given[k];
      }
  }
};

template <typename T>
Rows rows_of(const Geometry& geometry, const Convolution& conv, const Places& places, const Structure& w) {
  return {w.segments, w.rows, conv.in_channels / conv.groups, block_bytes<T>(geometry.x, conv, geometry.vector),
          [&](int64_t, int64_t k) { return places[w.columns[k]].channel; }};
}

// Tiles [first, first + count) of images, one after the other in `tiles`; `source` begins at image `origin`.
template <typename T>
void fill_images(const T* source, int64_t origin, const Convolution& conv, const Layout& layout, int64_t first,
                 int64_t count, const uint8_t* used, T* tiles, const Run& run) {
  const int64_t pieces = (layout.channels + channels_per_piece - 1) / channels_per_piece;
  for_each(count * pieces, run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t t = unit / pieces, from = unit % pieces * channels_per_piece;
    const int64_t image = (first + t) * layout.lanes;
    fill(source, conv.channels_last, layout, image - origin, std::min(layout.lanes, conv.batch - image), from,
         std::min(layout.channels, from + channels_per_piece), used,
         tiles + t * layout.tile() + from * layout.channel(), run.isa);
  });
}

inline int64_t unit_count(int64_t channels) { return (channels + channels_per_unit - 1) / channels_per_unit; }

// Channels of `out` from tiles of `in`, each as many rows of weights as `out` has phases.
template <typename T>
void multiply(const T* tiles, const Layout& in, const Layout& out, const std::vector<Group>& groups,
              const Convolution& conv, const Weights<T>& weights, const T* bias, bool relu, int64_t first,
              int64_t count, T* target, const Run& run) {
  Layout held = out;  // of a plane only what a group fills: the nearer together, the fewer pages
  if (leaves_by_rows(out) && !groups.empty())
    held.plane = (groups.front().rows * out.pitch * out.lanes + 31) / 16 * 16;
  const int64_t most = std::min(channels_per_unit, out.channels) * held.channel();
  const Scratch<T> scratch(run.threads * most);
  const int64_t units = unit_count(out.channels), phases = out.phases();
  for_each(count * units, run.threads, run.watch, [&](int thread, int64_t unit) {
    const int64_t t = unit / units, from = unit % units * channels_per_unit;
    const int64_t to = std::min(out.channels, from + channels_per_unit), image = (first + t) * out.lanes;
    T* results = scratch.get() + thread * most;
    for (const Group& group : groups) {
      for (int64_t p = 0; p < weights.parts; ++p)
        for (const Block& block : group.blocks)
          conv_products(tiles + t * in.tile() + block.in, weights.part(p), from * phases, to * phases, bias,
                        Stage{p == 0, relu && p + 1 == weights.parts}, block.vectors, results + block.out, held.plane,
                        run.isa);
      drain(results, held, image, std::min(out.lanes, conv.batch - image), from, to, group.row, group.rows, target,
            conv.channels_last, run.isa);
    }
  });
}

// dvalues += each kept weight's dot products over `count` tiles, in their order.
template <typename T>
void sample(const T* g_tiles, const T* x_tiles, const Geometry& geometry, const std::vector<Group>& groups,
            const Weights<T>& weights, int64_t count, T* dvalues, const Run& run) {
  for_each(unit_count(weights.rows), run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t from = unit * channels_per_unit, to = std::min(weights.rows, from + channels_per_unit);
    for (int64_t t = 0; t < count; ++t)
      for (const Group& group : groups)
        for (int64_t p = 0; p < weights.parts; ++p)
          for (const Block& block : group.blocks)
            conv_samples(g_tiles + t * geometry.g.tile() + geometry.g_first + block.in, geometry.g.channel(),
                         x_tiles + t * geometry.x.tile() + block.in, weights.part(p), from, to, block.vectors,
                         dvalues, run.isa);
  });
}

// dbias += the sums of every channel of a tile of g, sixteen strands folded in halves.
template <typename T>
void add_planes(const T* tile, const Layout& g, T* dbias) {
  for (int64_t c = 0; c < g.channels; ++c) {
    const T* plane = tile + c * g.channel();  // a multiple of 16 entries, zeros around the image
    T sums[16] = {};
    for (int64_t i = 0; i < g.plane; i += 16)
      for (int j = 0; j < 16; ++j) sums[j] += plane[i + j];
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    dbias[c] += sums[0];
  }
}

// Tiles in flight at once.
int64_t tiles_together(const Geometry& geometry, int threads) {
  return std::min<int64_t>(geometry.tiles, threads == 1 ? 1 : 2 * int64_t(threads));
}

double work_of(const Convolution& conv, const Structure& w) {
  return double(w.nnz()) * double(conv.batch) * double(conv.out_height) * double(conv.out_width);
}

}  // namespace

template <typename T>
bool conv2d(const T* x, const Convolution& conv, const Structure& w, const T* values, const T* bias, bool relu,
            T* y, const Run& wanted) {
  const Run run{threads_for(work_of(conv, w), wanted.threads), wanted.isa, wanted.watch};
  const Geometry geometry(conv, vector_width<T>(run.isa));
  const Places places(conv, geometry, w);
  const Scratch<int64_t> offsets(w.nnz());
  std::vector<uint8_t> used(size_t(conv.in_channels));
  offsets_in_x(geometry, places, w, offsets.get(), used);
  const Rows rows = rows_of<T>(geometry, conv, places, w);
  const Weights<T> weights{rows.bounds.data(), rows.rows, rows.parts, offsets.get(), values};
  const std::vector<Group> groups = groups_of(geometry.x, geometry.y, geometry.vector);
  const int64_t most = tiles_together(geometry, run.threads);
  const Scratch<T> tiles(most * geometry.x.tile());
  for (int64_t t = 0; t < geometry.tiles && !run.watch.stopped(); t += most) {
    const int64_t count = std::min(most, geometry.tiles - t);
    fill_images(x, 0, conv, geometry.x, t, count, used.data(), tiles.get(), run);
    multiply(tiles.get(), geometry.x, geometry.y, groups, conv, weights, bias, relu, t, count, y, run);
  }
  return !run.watch.stopped();
}

template <typename T>
bool conv2d_backward(const T* g, const T* gate, const T* x, const Convolution& conv, const Structure& w,
                     const T* values, const Gradients<T>& out, const Run& wanted) {
  const Run run{threads_for(2 * work_of(conv, w), wanted.threads), wanted.isa, wanted.watch};
  const Geometry geometry(conv, vector_width<T>(run.isa));
  const Places places(conv, geometry, w);
  const Scratch<int64_t> offsets(out.dvalues == nullptr ? 0 : w.nnz());
  std::vector<uint8_t> used(size_t(conv.in_channels)), every(size_t(conv.out_channels), 1);
  if (out.dvalues != nullptr) offsets_in_x(geometry, places, w, offsets.get(), used);
  const Rows rows = rows_of<T>(geometry, conv, places, w);
  const Weights<T> weights{rows.bounds.data(), rows.rows, rows.parts, offsets.get(), values};
  const Turned<T> turned(conv, geometry, places, w, values);
  const int64_t g_channel = geometry.g.channel();
  const Rows turned_rows(turned.first.data(), int64_t(turned.first.size()) - 1, conv.out_channels,
                         block_bytes<T>(geometry.g, conv, geometry.vector),
                         [&](int64_t, int64_t k) { return turned.offsets.get()[k] / g_channel; });
  const Weights<T> turned_weights{turned_rows.bounds.data(), turned_rows.rows, turned_rows.parts,
                                  turned.offsets.get(), turned.values.get()};
  const std::vector<Group> groups = groups_of(geometry.x, geometry.y, geometry.vector);
  const std::vector<Group> turned_groups = groups_of(geometry.g, geometry.dx, geometry.vector);
  if (out.dvalues != nullptr) std::fill(out.dvalues, out.dvalues + w.nnz(), T(0));
  if (out.dbias != nullptr) std::fill(out.dbias, out.dbias + w.rows, T(0));
  const Axis &dh = geometry.dx.height, &dw = geometry.dx.width;
  if (out.dx != nullptr && (dh.phases < dh.stride || dw.phases < dw.stride))  // pixels that no tap reads
    std::fill(out.dx, out.dx + conv.batch * conv.in_channels * conv.height * conv.width, T(0));
  const int64_t most = tiles_together(geometry, run.threads);
  const int64_t image = conv.out_channels * conv.out_height * conv.out_width;
  const Scratch<T> g_tiles(most * geometry.g.tile()), x_tiles(out.dvalues ? most * geometry.x.tile() : 0);
  const Scratch<T> gated(gate == nullptr ? 0 : most * geometry.lanes * image);
  for (int64_t t = 0; t < geometry.tiles && !run.watch.stopped(); t += most) {
    const int64_t count = std::min(most, geometry.tiles - t), from = t * geometry.lanes;
    const int64_t images = std::min(count * geometry.lanes, conv.batch - from);
    if (gate != nullptr) {
      for_each(images, run.threads, run.watch, [&](int, int64_t i) {
        const T *in = g + (from + i) * image, *open = gate + (from + i) * image;
        T* to = gated.get() + i * image;
        for (int64_t e = 0; e < image; ++e) to[e] = open[e] <= 0 ? T(0) : in[e];
      });
    }
    fill_images(gate == nullptr ? g : gated.get(), gate == nullptr ? 0 : from, conv, geometry.g, t, count,
                every.data(), g_tiles.get(), run);
    if (out.dx != nullptr)
      multiply<T>(g_tiles.get(), geometry.g, geometry.dx, turned_groups, conv, turned_weights, nullptr, false, t,
                  count, out.dx, run);
    if (out.dvalues != nullptr) {
      fill_images(x, 0, conv, geometry.x, t, count, used.data(), x_tiles.get(), run);
      sample(g_tiles.get(), x_tiles.get(), geometry, groups, weights, count, out.dvalues, run);
    }
    for (int64_t i = 0; i < count && out.dbias != nullptr; ++i)
      add_planes(g_tiles.get() + i * geometry.g.tile(), geometry.g, out.dbias);
  }
  return !run.watch.stopped();
}

template bool conv2d(const float*, const Convolution&, const Structure&, const float*, const float*, bool, float*,
                     const Run&);
template bool conv2d(const double*, const Convolution&, const Structure&, const double*, const double*, bool,
                     double*, const Run&);
template bool conv2d_backward(const float*, const float*, const float*, const Convolution&, const Structure&,
                              const float*, const Gradients<float>&, const Run&);
template bool conv2d_backward(const double*, const double*, const double*, const Convolution&, const Structure&,
                              const double*, const Gradients<double>&, const Run&);

}  // namespace lotterykit
