// Exact rounds of SynFlow. Scores are computed in double and stored as floats; rounding keeps the order, so
// only the scores equal to the threshold's float are computed again to be told apart. A sample brackets the
// threshold, one pass counts below the bracket and collects what is in it.
#include "synflow.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>

namespace lotterykit {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Tied {
  double score;
  uint32_t rank;
  size_t layer;
  int64_t at;
};

// The score of one kept weight again, summed in one order whatever the instruction set.
template <typename T>
double exact_score(const FlowLayer<T>& l, int64_t k, int64_t row) {
  const size_t place = size_t(l.places[size_t(k)]);
  const double* x = l.x + row / l.rows_per_group * l.group_stride + (l.lanes == 1 ? int64_t(place) : l.offsets[place]);
  const double* g = l.g + row * l.lanes;
  double sum = 0;
  for (int64_t i = 0; i < l.lanes; ++i) sum += x[i] * g[i];
  return double(l.magnitudes[size_t(k)]) * (sum * l.score_scale);
}

// sums 2^exponent + |bias|, in units of 2^result: neither may overflow in the other's units.
int add_bias(std::vector<double>& sums, int exponent, const double* bias) {
  const double most = *std::max_element(bias, bias + sums.size());
  const int common = most > 0 ? std::max(exponent, std::ilogb(most)) : exponent;
  for (size_t r = 0; r < sums.size(); ++r)
    sums[r] = std::ldexp(sums[r], exponent - common) + std::ldexp(bias[r], -common);
  return common;
}

// To 32 significant bits: weights in series on one path tie in exact arithmetic, and only the tie order may tell
// them apart. Word for word `rounded` of lotterykit/ops/synflow_masks.py.
double rounded(double score) {
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  bits = (bits + (uint64_t(1) << 19)) & ~((uint64_t(1) << 20) - 1);
  std::memcpy(&score, &bits, sizeof bits);
  return score;
}

// Divides by the power of two that brings the largest entry into [1, 2); returns its exponent.
int normalise(std::vector<double>& v) {
  double most = 0;
  for (const double e : v) most = std::max(most, e);
  if (most == 0 || !std::isfinite(most)) return 0;
  const int exponent = std::ilogb(most);
  for (double& e : v) e = std::ldexp(e, -exponent);
  return exponent;
}

}  // namespace

template <typename T>
Flow<T>::Flow(const FlowSource* sources, int64_t count, Isa isa) : isa_(isa == Isa::best ? best_isa() : isa) {
  layers_.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    const FlowSource& s = sources[i];
    FlowLayer<T>& l = layers_[size_t(i)];
    l.rows = s.rows, l.columns = s.columns, l.rows_per_group = std::max<int64_t>(1, s.rows / s.groups);
    l.starts.assign(size_t(s.rows) + 1, 0);
    const T* weight = static_cast<const T*>(s.weight);
    int64_t kept = 0;
    for (int64_t p = 0; p < s.rows * s.columns; ++p) kept += s.mask == nullptr || s.mask[p] != 0;
    l.places.resize(size_t(kept));
    l.magnitudes.resize(size_t(kept));
    l.scores.resize(size_t(kept));
    int64_t to = 0;
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.columns; ++c) {
        const int64_t p = r * s.columns + c;
        if (s.mask != nullptr && s.mask[p] == 0) continue;
        const T magnitude = std::abs(weight[p]);
        finite_ &= bool(std::isfinite(magnitude));
        l.places[size_t(to)] = int32_t(c);
        l.magnitudes[size_t(to++)] = magnitude;
      }
      l.starts[size_t(r) + 1] = to;
    }
  }
}

template <typename T>
void Flow<T>::read_matrix(int64_t layer, int64_t lanes) {
  FlowLayer<T>& l = layers_[size_t(layer)];
  if (l.lanes == lanes && l.x_size != 0 && l.group_stride == l.columns * lanes) return;
  l.lanes = lanes, l.group_stride = l.columns * lanes;
  l.x_size = l.rows / l.rows_per_group * l.group_stride;
  l.offsets.resize(lanes == 1 ? 0 : size_t(l.columns));
  for (size_t c = 0; c < l.offsets.size(); ++c) l.offsets[c] = int32_t(int64_t(c) * lanes);
}

template <typename T>
void Flow<T>::read_image(int64_t layer, const int32_t* offsets, int64_t group_stride, int64_t x_size,
                         int64_t lanes) {
  FlowLayer<T>& l = layers_[size_t(layer)];
  l.lanes = lanes, l.group_stride = group_stride, l.x_size = x_size;
  l.offsets.assign(offsets, offsets + l.columns);
}

template <typename T>
void Flow<T>::forward(int64_t layer, const double* x, double* y) {
  FlowLayer<T>& l = layers_[size_t(layer)];
  l.x = x;
  flow_forward(l, y, isa_);
}

template <typename T>
void Flow<T>::backward(int64_t layer, const double* g, double* dx) {
  FlowLayer<T>& l = layers_[size_t(layer)];
  l.g = g;
  if (dx != nullptr) std::fill_n(dx, l.x_size, 0.0);
  flow_backward(l, dx, dots_, isa_);
}

template <typename T>
FlowStatus Flow<T>::select(const FlowCount* counts, int64_t count, Watch& watch) {
  guesses_.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i)
    if (const FlowStatus status = drop(counts[i], guesses_[size_t(i)], watch); status != FlowStatus::ok) return status;
  return FlowStatus::ok;
}

template <typename T>
FlowStatus Flow<T>::drop(const FlowCount& count, Guess& guess, Watch& watch) {
  int64_t total = 0;
  for (const int64_t i : count.layers) total += kept(i);
  const int64_t dropped = total - count.kept;
  if (dropped <= 0) return FlowStatus::ok;
  const TieSeed seed = tie_seed(count.seed);
  // From round to round the threshold moves evenly; what a guess or a sample misses, the next bracket holds.
  float low = guess.next - guess.margin, above = guess.next + guess.margin;
  int attempt = 0;
  if (!(low > 0)) std::tie(low, above) = bracket(count.layers, total, dropped, seed), ++attempt;
  int64_t found = 0, below = 0;
  for (;; ++attempt) {
    found = below = 0;
    for (const int64_t i : count.layers) {
      const std::vector<float>& scores = layers_[size_t(i)].scores;
      constexpr int64_t piece = 1 << 15;
      for (int64_t from = 0; from < int64_t(scores.size()); from += piece) {
        const int64_t n = std::min<int64_t>(piece, int64_t(scores.size()) - from);
        if (int64_t(between_.size()) < found + n) between_.resize(size_t(2 * found + n));
        found += flow_between(scores.data() + from, n, low, above, between_.data() + found, &below, isa_);
        watch.tick();
        if (watch.stopped()) return FlowStatus::interrupted;
      }
    }
    if (dropped > below && dropped <= below + found) break;
    if (attempt == 0) std::tie(low, above) = bracket(count.layers, total, dropped, seed);
    else if (attempt == 1) low = -infinity, above = infinity;
    else return FlowStatus::overflow;  // infinite or NaN: no bracket holds them
  }
  const auto nth = between_.begin() + (dropped - below - 1);
  std::nth_element(between_.begin(), nth, between_.begin() + found);
  const float threshold = *nth;
  if (guess.threshold >= 0) {
    guess.margin = guess.next >= 0 ? 2 * std::abs(guess.next - threshold) + 1e-3f * threshold : 0.05f * threshold;
    guess.next = 2 * threshold - guess.threshold;
  }
  guess.threshold = threshold;
  int64_t left = dropped - below, equal = 0;
  for (int64_t j = 0; j < found; ++j)
    left -= between_[size_t(j)] < threshold, equal += between_[size_t(j)] == threshold;
  if (left < equal && !mark_tied(count.layers, threshold, left, seed, watch)) return FlowStatus::interrupted;
  const float least = left < equal ? threshold : std::nextafter(threshold, infinity);
  for (const int64_t i : count.layers) flow_close_up(layers_[size_t(i)], least, isa_);
  return FlowStatus::ok;
}

// Scores [low, above) that hold the dropped-th lowest; 4 standard deviations of the sampled rank miss once in
// 10,000.
template <typename T>
std::pair<float, float> Flow<T>::bracket(const std::vector<int64_t>& layers, int64_t total, int64_t dropped,
                                         TieSeed seed) {
  const int64_t draws = std::min(total, std::clamp<int64_t>(total / 64, 512, 16384));
  sample_.clear();
  const double stride = double(total) / double(draws);
  int64_t passed = 0;
  size_t at = 0;
  for (int64_t j = 0; j < draws; ++j) {  // jittered, so that no period of the layers is hit
    const double jitter = double(tie_rank(uint32_t(j), seed)) * 0x1p-32;
    const int64_t position = std::min(total - 1, int64_t((double(j) + jitter) * stride));
    while (position - passed >= kept(layers[at])) passed += kept(layers[at++]);
    sample_.push_back(layers_[size_t(layers[at])].scores[size_t(position - passed)]);
  }
  const double share = double(dropped) / double(total), rank = share * double(draws);
  const double margin = 4 * std::sqrt(double(draws) * share * (1 - share)) + 2;
  float low = -infinity, above = infinity;
  auto end = sample_.end();
  if (const auto last = int64_t(std::ceil(rank + margin)); last < draws) {
    end = sample_.begin() + last;
    std::nth_element(sample_.begin(), end, sample_.end());
    above = std::nextafter(*end, infinity);
  }
  if (const auto first = int64_t(rank - margin); first > 0) {
    std::nth_element(sample_.begin(), sample_.begin() + first, end);
    low = sample_[size_t(first)];
  }
  return {low, above};
}

// Gives `left` of the weights whose score rounds to the threshold a score below all: those lowest in double,
// then those last in the tie order. False where stopped.
template <typename T>
bool Flow<T>::mark_tied(const std::vector<int64_t>& layers, float threshold, int64_t left, TieSeed seed,
                        Watch& watch) {
  std::vector<Tied> tied;
  uint32_t offset = 0;
  for (const int64_t i : layers) {
    const FlowLayer<T>& l = layers_[size_t(i)];
    for (int64_t r = 0; r < l.rows; ++r)
      for (int64_t k = l.starts[size_t(r)]; k < l.starts[size_t(r) + 1]; ++k)
        if (l.scores[size_t(k)] == threshold) {
          const uint32_t position = offset + uint32_t(r * l.columns + l.places[size_t(k)]);
          tied.push_back({rounded(exact_score(l, k, r)), tie_rank(position, seed), size_t(i), k});
        }
    offset += uint32_t(l.rows * l.columns);
    watch.tick();
    if (watch.stopped()) return false;
  }
  const auto worse = [](const Tied& a, const Tied& b) {
    return a.score != b.score ? a.score < b.score : a.rank > b.rank;
  };
  std::nth_element(tied.begin(), tied.begin() + left, tied.end(), worse);
  for (int64_t j = 0; j < left; ++j) layers_[tied[size_t(j)].layer].scores[size_t(tied[size_t(j)].at)] = -infinity;
  return true;
}

template <typename T>
void Flow<T>::write_mask(int64_t layer, uint8_t* mask) const {
  const FlowLayer<T>& l = layers_[size_t(layer)];
  std::fill_n(mask, l.rows * l.columns, uint8_t(0));
  for (int64_t r = 0; r < l.rows; ++r)
    for (int64_t k = l.starts[size_t(r)]; k < l.starts[size_t(r) + 1]; ++k)
      mask[r * l.columns + l.places[size_t(k)]] = 1;
}

// Whether an input reaches an output of the chain, whatever the magnitudes.
template <typename T>
bool Flow<T>::is_live() const {
  std::vector<uint8_t> reached(size_t(layers_.front().columns), 1);
  for (const FlowLayer<T>& l : layers_) {
    std::vector<uint8_t> next(size_t(l.rows), 0);
    for (int64_t r = 0; r < l.rows; ++r)
      for (int64_t k = l.starts[size_t(r)]; k < l.starts[size_t(r) + 1] && !next[size_t(r)]; ++k)
        next[size_t(r)] = reached[size_t(l.places[size_t(k)])];
    reached = std::move(next);
  }
  return std::find(reached.begin(), reached.end(), 1) != reached.end();
}

// Forward and backward through a chain: x, g and scores of every layer.
template <typename T>
FlowStatus Flow<T>::pass(const std::vector<const double*>& biases, Vectors& v) {
  const size_t depth = layers_.size();
  auto& [x, g, exponents] = v;
  x.resize(depth + 1), g.resize(depth + 1), exponents.assign(depth + 1, 0);
  x[0].assign(size_t(layers_[0].columns), 1.0);
  for (size_t l = 0; l < depth; ++l) {
    x[l + 1].resize(size_t(layers_[l].rows));
    g[l].resize(size_t(layers_[l].columns));
    read_matrix(int64_t(l), 1);
    forward(int64_t(l), x[l].data(), x[l + 1].data());
    int exponent = exponents[l];
    if (biases[l] != nullptr && !x[l + 1].empty()) exponent = add_bias(x[l + 1], exponent, biases[l]);
    exponents[l + 1] = exponent + normalise(x[l + 1]);
  }
  const double reach = std::accumulate(x[depth].begin(), x[depth].end(), 0.0);
  if (!std::isfinite(reach)) return FlowStatus::overflow;
  g[depth].assign(size_t(layers_[depth - 1].rows), reach > 0 ? 1.0 / reach : 0.0);
  int exponent = 0;
  for (size_t l = depth; l-- > 0;) {
    layers_[l].score_scale = std::ldexp(1.0, std::min(1000, exponents[l] + exponent - exponents[depth]));
    backward(int64_t(l), g[l + 1].data(), l > 0 ? g[l].data() : nullptr);
    if (l > 0) exponent += normalise(g[l]);
  }
  return FlowStatus::ok;
}

template <typename T>
FlowStatus Flow<T>::chain_scores(const std::vector<const double*>& biases, const std::vector<double*>& out) {
  Vectors vectors;
  if (const FlowStatus status = pass(biases, vectors); status != FlowStatus::ok) return status;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const FlowLayer<T>& l = layers_[i];
    std::fill_n(out[i], l.rows * l.columns, 0.0);
    for (int64_t r = 0; r < l.rows; ++r)
      for (int64_t k = l.starts[size_t(r)]; k < l.starts[size_t(r) + 1]; ++k)
        out[i][r * l.columns + l.places[size_t(k)]] = exact_score(l, k, r);
  }
  return FlowStatus::ok;
}

template <typename T>
FlowStatus Flow<T>::chain(const std::vector<const double*>& biases,
                          const std::vector<std::vector<FlowCount>>& rounds, int64_t* kept_after,
                          uint8_t* live_after, Watch& watch) {
  const size_t depth = layers_.size();
  Vectors vectors;
  for (size_t round = 0; round < rounds.size(); ++round) {
    FlowStatus status = pass(biases, vectors);
    if (status == FlowStatus::ok) status = select(rounds[round].data(), int64_t(rounds[round].size()), watch);
    if (status != FlowStatus::ok) return status;
    for (size_t l = 0; l < depth; ++l) kept_after[round * depth + l] = kept(int64_t(l));
    if (live_after != nullptr) live_after[round] = is_live();
  }
  return FlowStatus::ok;
}

template class Flow<float>;
template class Flow<double>;

}  // namespace lotterykit
