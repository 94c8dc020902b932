// SynFlow, many rounds in one program: the kept magnitudes of every layer in compressed rows, their products
// in double, an exact selection, and the rows closed up after each round.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "../tie_order.h"
#include "runtime.h"

namespace lotterykit {

// A layer to prune, a matrix [rows][columns] of T: a convolution is one of [out][in / groups * kernel entries].
// Borrowed for the constructor alone. `mask` is null or holds a byte a weight, and pruned ones may hold anything.
struct FlowSource {
  const void* weight;
  const uint8_t* mask;
  int64_t rows, columns, groups;
};

// Row r belongs to group r / rows_per_group, and its column c reads x[group * group_stride + offsets[c] + lane].
template <typename T>
struct FlowLayer {
  int64_t rows = 0, columns = 0, rows_per_group = 1;
  std::vector<int64_t> starts;    // [rows + 1]
  std::vector<int32_t> places;    // [kept] column of each kept weight
  std::vector<T> magnitudes;      // [kept]
  std::vector<float> scores;      // [kept], in units of `score_scale`
  const double* x = nullptr;      // [x_size], borrowed from forward() to select()
  const double* g = nullptr;      // [rows][lanes], borrowed from backward() to select()
  int64_t lanes = 1, group_stride = 0, x_size = 0;
  std::vector<int32_t> offsets;   // [columns], not used where lanes is 1: a matrix then, offsets[c] = c
  double score_scale = 1.0;       // what the products of x and g are multiplied by
  int64_t kept() const { return int64_t(places.size()); }
};

// Layers that are counted together: `layers` by index, `kept` how many weights stay, ties drawn by `seed` over
// flat positions that run through the layers in this order (below 2^32).
struct FlowCount {
  std::vector<int64_t> layers;
  int64_t kept;
  uint64_t seed;
};

enum class FlowStatus { ok, overflow, interrupted };

template <typename T>
class Flow {
 public:
  // `finite()` is false where a kept weight is infinite or NaN; nothing else may then be called.
  Flow(const FlowSource* layers, int64_t count, Isa isa);
  bool finite() const { return finite_; }
  int64_t layers() const { return int64_t(layers_.size()); }
  int64_t kept(int64_t layer) const { return layers_[size_t(layer)].kept(); }

  // How the next products of a layer read x. A matrix [groups * columns][lanes], or, with offsets [columns],
  // an image of which column c is the `lanes` entries from offsets[c] on: they overlap, so that a convolution
  // needs no copies. x_size bounds group * group_stride + offsets[c] + lanes.
  void read_matrix(int64_t layer, int64_t lanes);
  void read_image(int64_t layer, const int32_t* offsets, int64_t group_stride, int64_t x_size, int64_t lanes);
  // y [rows][lanes] = |W| x.
  void forward(int64_t layer, const double* x, double* y);
  // Scores of the layer, and dx = |W|^T g unless null, of the last forward(); g [rows][lanes].
  void backward(int64_t layer, const double* g, double* dx);
  // Keeps the `kept` weights of highest score of each count (all where there are fewer); `overflow` where
  // scores are not finite.
  FlowStatus select(const FlowCount* counts, int64_t count, Watch& watch);
  // One byte a weight of the layer: 1 where it is kept.
  void write_mask(int64_t layer, uint8_t* mask) const;

  // The scores of a chain in double: out[layer] [rows][columns], 0 where a weight is pruned. See chain().
  FlowStatus chain_scores(const std::vector<const double*>& biases, const std::vector<double*>& out);
  // Rounds of a chain: forward from ones through every layer in order, plus |bias| where not null, backward
  // from ones, select. Vectors are rescaled by powers of two, so no depth overflows. `kept_after` receives
  // [rounds][layers], `live_after` [rounds]: whether a path of kept weights is left (may be null).
  FlowStatus chain(const std::vector<const double*>& biases, const std::vector<std::vector<FlowCount>>& rounds,
                   int64_t* kept_after, uint8_t* live_after, Watch& watch);

 private:
  struct Vectors {  // of a chain: x[l] and g[l] at the input of layer l; the true x[l] is that times 2^exponents[l]
    std::vector<std::vector<double>> x, g;
    std::vector<int> exponents;
  };
  FlowStatus pass(const std::vector<const double*>& biases, Vectors& v);
  struct Guess {  // the last threshold, where the next is expected, and how far that may be off
    float threshold = -1, next = -1, margin = 0;
  };

  FlowStatus drop(const FlowCount& count, Guess& guess, Watch& watch);
  std::pair<float, float> bracket(const std::vector<int64_t>& layers, int64_t total, int64_t dropped, TieSeed seed);
  bool mark_tied(const std::vector<int64_t>& layers, float threshold, int64_t left, TieSeed seed, Watch& watch);
  bool is_live() const;

  std::vector<FlowLayer<T>> layers_;
  std::vector<Guess> guesses_;           // one for each count of select()
  std::vector<double> dots_;
  std::vector<float> sample_, between_;  // kept from round to round: fresh memory costs more than the selection
  Isa isa_;
  bool finite_ = true;
};

// Products of one layer; see flow_rows.h. `dots` is room for one number a kept weight.
template <typename T>
void flow_forward(const FlowLayer<T>& layer, double* y, Isa isa);
template <typename T>
void flow_backward(FlowLayer<T>& layer, double* dx, std::vector<double>& dots, Isa isa);
// Closes up a layer's rows: entries of score >= least stay.
template <typename T>
void flow_close_up(FlowLayer<T>& layer, float least, Isa isa);
// Copies those of n scores that are at least `low` and less than `above` to `out`, which has room for n; returns
// how many, and adds the number of those less than `low` to `below`.
int64_t flow_between(const float* scores, int64_t n, float low, float above, float* out, int64_t* below, Isa isa);

}  // namespace lotterykit
