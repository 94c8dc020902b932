// Tiles of images are moved into a layout in which every kept weight is one scalar times one stretch of entries
// (conv2d_layout.h); then a block of sums stays in registers over a row's kept weights. dx is the same product
// with the kept weights listed by input channel and phase; dvalues are dot products of x, without zeros, and the same
// stretches of g, so that batch-last images of x, y and dx need no copy where whole vectors of them are whole lanes.
#include "conv2d.h"

#include <algorithm>
#include <vector>

#include "conv2d_kernels.h"
#include "conv2d_layout.h"
#include "conv2d_weights.h"
#include "products.h"

namespace lotterykit {
namespace {

constexpr int64_t channels_per_unit = 64;     // of the result: threads share them out
constexpr int64_t channels_per_piece = 32;    // of a tile, moved at once
constexpr int64_t entries_per_unit = 1 << 16;  // of an elementwise pass

// What is computed at once: `rows` rows of a plane of the result from `row` on, in blocks. A block counts from there
// in the result, and from the first place held in the input.
struct Band {
  int64_t row, rows;
  std::vector<Block> blocks;
};

// The bands that cover a plane of `out`. Where lanes is 1 a single run of entries covers all rows and what stands
// between them.
std::vector<Band> bands_of(const Layout& in, const Layout& out, int vector) {
  const int64_t columns = out.width.length;
  std::vector<Band> bands;
  for (int64_t row = 0; row < out.height.length; row += out.rows) {
    Band band{row, std::min(out.rows, out.height.length - row), {}};
    const int64_t runs = out.lanes == 1 ? 1 : band.rows;
    const int64_t length = out.lanes == 1 ? (band.rows - 1) * out.pitch + columns : columns * out.lanes;
    const int64_t vectors = (length + vector - 1) / vector, count = (vectors + most_vectors - 1) / most_vectors;
    for (int64_t run = 0; run < runs; ++run)
      for (int64_t i = 0; i < count; ++i) {  // as even as can be: few vectors wait for their sums
        const int64_t from = vectors * i / count, to = vectors * (i + 1) / count;
        band.blocks.push_back({run * in.pitch * in.lanes + from * vector,
                               run * out.pitch * out.lanes + from * vector, int(to - from)});
      }
    bands.push_back(std::move(band));
  }
  return bands;
}

// A part of a tile, as it is moved or computed: band b of tile t.
struct Piece {
  int64_t image;  // the tile's first
  const Band& band;
};

// The pieces of all tiles in order, a few of them in flight at once.
struct Pieces {
  const Layout& out;
  const std::vector<Band>& bands;
  int64_t tiles;

  int64_t count() const { return tiles * int64_t(bands.size()); }
  int64_t together(int threads) const { return std::min<int64_t>(count(), threads == 1 ? 1 : 2 * int64_t(threads)); }
  Piece operator[](int64_t i) const {
    return {i / int64_t(bands.size()) * out.lanes, bands[size_t(i) % bands.size()]};
  }
};

// Rows of a piece, of those held, that its tile has already: with one piece in flight, those that it shares with the
// band before it are moved up.
template <typename T>
int64_t keep_rows(const Layout& layout, const Pieces& pieces, int64_t i, int64_t from, int64_t to, T* tile, Isa isa) {
  if (i == 0 || pieces[i].band.row == 0) return 0;
  const int64_t gone = pieces[i - 1].band.rows, row = layout.pitch * layout.lanes;
  const int64_t kept = std::max<int64_t>(0, layout.rows - gone);
  for (int64_t p = from * layout.phases(); p < to * layout.phases(); ++p)
    move_pixels(tile + p * layout.plane + gone * row, row, kept, row, 0, tile + p * layout.plane, row, isa);
  return kept;
}

// Pieces [first, first + count), one after the other in `tiles`.
template <typename T>
void fill_pieces(const T* source, const Convolution& conv, const Layout& layout, const Pieces& pieces, int64_t first,
                 int64_t count, const uint8_t* used, T* tiles, const Run& run) {
  const int64_t units = (layout.channels + channels_per_piece - 1) / channels_per_piece;
  for_each(count * units, run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t i = unit / units, from = unit % units * channels_per_piece;
    const int64_t to = std::min(layout.channels, from + channels_per_piece);
    const Piece piece = pieces[first + i];
    T* tile = tiles + i * layout.tile();
    const int64_t kept = run.threads == 1 ? keep_rows(layout, pieces, first + i, from, to, tile, run.isa) : 0;
    fill(source, conv.batch, conv.order, layout, piece.image, std::min(layout.lanes, conv.batch - piece.image), from,
         to, piece.band.row, kept, used, tile + from * layout.channel(), run.isa);
  });
}

// A block in images where a layout without zeros stands in place; `images` are those of the first channel wanted.
template <typename T>
Stretch<T> in_images(T* images, const Convolution& conv, const Layout& layout, const Piece& piece, const Block& block,
                     int vector) {
  const int64_t pixels = layout.height.size * layout.width.size;
  Stretch<T> stretch{images + piece.band.row * layout.width.size * conv.batch + piece.image, pixels * conv.batch, {}};
  for (int i = 0; i < block.vectors; ++i) {
    const int64_t entry = block.out + i * vector;
    stretch.at[i] = entry / layout.lanes * conv.batch + entry % layout.lanes;
  }
  return stretch;
}

// A block in a tile whose first row wanted stands at `rows`.
template <typename T>
Stretch<T> in_tile(T* rows, const Layout& layout, const Block& block, int vector) {
  Stretch<T> stretch{rows + block.out, layout.plane, {}};
  for (int i = 0; i < block.vectors; ++i) stretch.at[i] = i * vector;
  return stretch;
}

inline int64_t unit_count(int64_t channels) { return (channels + channels_per_unit - 1) / channels_per_unit; }

// Channels of `out` from tiles of `in`, each as many rows of weights as `out` has phases.
template <typename T>
void multiply(const T* tiles, const Layout& in, const Layout& out, const Pieces& pieces, const Convolution& conv,
              const Weights<T>& weights, const T* bias, bool relu, int64_t first, int64_t count, T* target,
              const Run& run) {
  const int vector = vector_width<T>(run.isa);
  const bool in_place = stands_in_place(out, conv.batch, conv.order, vector);
  const int64_t pixels = out.height.size * out.width.size;
  const int64_t most = in_place && weights.parts == 1 ? 0 : std::min(channels_per_unit, out.channels) * out.channel();
  const Scratch<T> scratch(run.threads * most);
  const int64_t units = unit_count(out.channels), phases = out.phases();
  for_each(count * units, run.threads, run.watch, [&](int thread, int64_t unit) {
    const int64_t i = unit / units, from = unit % units * channels_per_unit;
    const int64_t to = std::min(out.channels, from + channels_per_unit);
    const Piece piece = pieces[first + i];
    T* results = scratch.get() + thread * most;
    for (int64_t p = 0; p < weights.parts; ++p)
      for (const Block& block : piece.band.blocks) {
        const Stage<T> stage{p == 0, p + 1 == weights.parts, relu, results + block.out, out.plane};
        T* images = target + from * pixels * conv.batch;
        conv_products(tiles + i * in.tile() + block.in, weights.part(p), from * phases, to * phases, bias, stage,
                      block.vectors,
                      in_place ? in_images(images, conv, out, piece, block, vector)
                               : in_tile(results, out, block, vector),
                      run.isa);
      }
    if (!in_place)
      drain(results, out, piece.image, std::min(out.lanes, conv.batch - piece.image), from, to, piece.band.row,
            piece.band.rows, target, conv.batch, conv.order, run.isa);
  });
}

// dvalues, in the order of the turned weights, += their dot products over pieces, in their order. x is read where it
// is or, where x_tiles is not null, from there.
template <typename T>
void sample(const T* g_tiles, const T* x, const T* x_tiles, const Geometry& geometry, const Pieces& pieces,
            const Convolution& conv, const Weights<T>& weights, int64_t first, int64_t count, T* dvalues,
            const Run& run) {
  const int vector = vector_width<T>(run.isa);
  const Layout& held = geometry.dx;
  const int64_t pixels = conv.height * conv.width, phases = held.phases();
  const int64_t each = std::max<int64_t>(8, std::min(channels_per_unit, held.channels / run.threads));
  for_each((held.channels + each - 1) / each, run.threads, run.watch, [&](int, int64_t unit) {
    const int64_t from = unit * each, to = std::min(held.channels, from + each);
    for (int64_t i = 0; i < count; ++i) {
      const Piece piece = pieces[first + i];
      for (int64_t p = 0; p < weights.parts; ++p)
        for (const Block& block : piece.band.blocks)
          conv_samples(x_tiles == nullptr
                           ? in_images(x + from * pixels * conv.batch, conv, held, piece, block, vector)
                           : in_tile(x_tiles + i * held.tile() + from * held.channel(), held, block, vector),
                       g_tiles + i * geometry.g.tile() + block.in, weights.part(p), from * phases, to * phases,
                       block.vectors, dvalues, run.isa);
    }
  });
}

// Sums over images and pixels, each channel's in sixteen strands folded in halves.
template <typename T>
void sum_channels(const T* g, const Convolution& conv, T* dbias, const Run& run) {
  const int64_t pixels = conv.out_height * conv.out_width, channels = conv.out_channels;
  const bool last = conv.order == Order::channels_last, batch_last = conv.order == Order::batch_last;
  const int64_t step = last ? channels : 1;
  const int64_t runs = conv.order == Order::channels_first ? conv.batch : 1;
  const int64_t length = runs == 1 ? conv.batch * pixels : pixels;
  for_each(channels, run.threads, run.watch, [&](int, int64_t c) {
    T sums[16] = {};
    for (int64_t i = 0; i < runs; ++i) {
      const T* in = g + (last ? c : batch_last ? c * length : (i * channels + c) * pixels);
      int64_t e = 0;
      for (; e + 16 <= length; e += 16)
        for (int j = 0; j < 16; ++j) sums[j] += in[(e + j) * step];
      for (int j = 0; e < length; ++e, ++j) sums[j] += in[e * step];
    }
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    dbias[c] = sums[0];
  });
}

double work_of(const Convolution& conv, const Structure& w) {
  return double(w.nnz()) * double(conv.batch) * double(conv.out_height) * double(conv.out_width);
}

}  // namespace

template <typename T>
bool conv2d(const T* x, const Convolution& conv, const Structure& w, const T* values, const T* bias, bool relu,
            T* y, const Run& wanted) {
  const Run run{threads_for(work_of(conv, w), wanted.threads), wanted.isa, wanted.watch};
  const Geometry geometry(conv, vector_width<T>(run.isa), sizeof(T));
  const Places places(conv, geometry, w);
  const Scratch<int64_t> offsets(w.nnz());
  std::vector<uint8_t> used(size_t(conv.in_channels));
  offsets_in_x(geometry, places, w, offsets.get(), used);
  const Rows rows(w.segments, w.rows, conv.in_channels / conv.groups,
                  block_bytes<T>(geometry.x, conv, geometry.vector),
                  [&](int64_t, int64_t k) { return places[w.columns[k]].channel; });
  const Weights<T> weights{rows.bounds.data(), rows.rows, rows.parts, offsets.get(), values};
  const std::vector<Band> bands = bands_of(geometry.x, geometry.y, geometry.vector);
  const Pieces pieces{geometry.y, bands, geometry.tiles};
  const int64_t most = pieces.together(run.threads);
  const Scratch<T> tiles(most * geometry.x.tile());
  for (int64_t i = 0; i < pieces.count() && !run.watch.stopped(); i += most) {
    const int64_t count = std::min(most, pieces.count() - i);
    fill_pieces(x, conv, geometry.x, pieces, i, count, used.data(), tiles.get(), run);
    multiply(tiles.get(), geometry.x, geometry.y, pieces, conv, weights, bias, relu, i, count, y, run);
  }
  return !run.watch.stopped();
}

template <typename T>
bool conv2d_backward(const T* g, const T* gate, const T* x, const Convolution& conv, const Structure& w,
                     const T* values, const Gradients<T>& out, const Run& wanted) {
  const Run run{threads_for(2 * work_of(conv, w), wanted.threads), wanted.isa, wanted.watch};
  const Geometry geometry(conv, vector_width<T>(run.isa), sizeof(T));
  const Layout &held = geometry.dx, &around = geometry.g;
  const Turned<T> turned(conv, geometry, Places(conv, geometry, w), w, values);
  const Rows rows(turned.first.data(), int64_t(turned.first.size()) - 1, conv.out_channels,
                  block_bytes<T>(around, conv, geometry.vector),
                  [&](int64_t, int64_t k) { return turned.offsets.get()[k] / around.channel(); });
  const Weights<T> weights{rows.bounds.data(), rows.rows, rows.parts, turned.offsets.get(), turned.values.get()};
  const std::vector<Band> bands = bands_of(around, held, geometry.vector);
  const Pieces pieces{held, bands, geometry.tiles};
  if (out.dx != nullptr && (held.height.phases < held.height.stride || held.width.phases < held.width.stride))
    std::fill(out.dx, out.dx + conv.batch * conv.in_channels * conv.height * conv.width, T(0));  // no tap reads all
  const int64_t images = conv.batch * conv.out_channels * conv.out_height * conv.out_width;
  const Scratch<T> gated(gate == nullptr ? 0 : images);
  if (gate != nullptr) {
    for_each((images + entries_per_unit - 1) / entries_per_unit, run.threads, run.watch, [&](int, int64_t unit) {
      const int64_t to = std::min(images, (unit + 1) * entries_per_unit);
      for (int64_t e = unit * entries_per_unit; e < to; ++e) gated.get()[e] = gate[e] <= 0 ? T(0) : g[e];
    });
    g = gated.get();
  }
  if (out.dbias != nullptr) sum_channels(g, conv, out.dbias, run);
  std::vector<uint8_t> every(size_t(std::max(conv.in_channels, conv.out_channels)), 1);
  const int64_t most = pieces.together(run.threads);
  const bool moves_x = out.dvalues != nullptr && !stands_in_place(held, conv.batch, conv.order, geometry.vector);
  const Scratch<T> g_tiles(most * around.tile()), x_tiles(moves_x ? most * held.tile() : 0);
  const Scratch<T> dvalues(out.dvalues == nullptr ? 0 : w.nnz());
  if (out.dvalues != nullptr) std::fill(dvalues.get(), dvalues.get() + w.nnz(), T(0));
  for (int64_t i = 0; i < pieces.count() && !run.watch.stopped(); i += most) {
    const int64_t count = std::min(most, pieces.count() - i);
    fill_pieces(g, conv, around, pieces, i, count, every.data(), g_tiles.get(), run);
    if (out.dx != nullptr)
      multiply<T>(g_tiles.get(), around, held, pieces, conv, weights, nullptr, false, i, count, out.dx, run);
    if (moves_x) fill_pieces(x, conv, held, pieces, i, count, every.data(), x_tiles.get(), run);
    if (out.dvalues != nullptr)
      sample(g_tiles.get(), x, moves_x ? x_tiles.get() : nullptr, geometry, pieces, conv, weights, i, count,
             dvalues.get(), run);
  }
  if (out.dvalues != nullptr)
    for (int64_t k = 0; k < w.nnz(); ++k) out.dvalues[k] = dvalues.get()[turned.places.get()[k]];
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
