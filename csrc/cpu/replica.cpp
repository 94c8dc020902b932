// One file for a replica's whole life: compaction, steps, evaluation and the way back share its layout.
#include "replica.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "../tie_order.h"
#include "x86.h"

namespace lotterykit {

namespace {

constexpr double dense_above = 0.45;  // share of a padded row kept from which dense is faster (x86_64-avx2-replicas.json)
constexpr int64_t steps_between_polls = 16;
constexpr size_t few = 64, many = 512;  // candidates around a threshold: the bracket widens or narrows

int64_t padded(int64_t n) { return (n + entry_align - 1) / entry_align * entry_align; }

// Denormal numbers cost a hundred cycles each on some processors, and the moments of silent neurons decay to
// them: they are flushed to 0 while a replica computes.
class FlushDenormals {
 public:
#ifdef LOTTERYKIT_X86
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Cuts the candidates down to those tied at the threshold that are kept, `need` being how many of all of them
// are; the group remembers the threshold and a bracket for the next step.
template <typename T>
void settle(ScoreState<T>& state, ScoreGroup<T>& group, int64_t need) {
  auto& found = state.candidates;
  const size_t size = found.size();
  const auto higher = [](const Candidate<T>& a, const Candidate<T>& b) { return a.key > b.key; };
  std::nth_element(found.begin(), found.begin() + (need - 1), found.end(), higher);
  const T threshold = found[need - 1].key;
  for (const Candidate<T>& c : found) need -= c.key > threshold;
  found.erase(std::remove_if(found.begin(), found.end(), [&](const Candidate<T>& c) { return c.key != threshold; }),
              found.end());
  if (int64_t(found.size()) > need) {
    const TieSeed seed = tie_seed(group.seed);
    const auto rank = [&](const Candidate<T>& c) {
      for (const ScoredRows& rows : group.tensors) {
        const int64_t at = c.at - rows.start, row = at / rows.stride;
        if (at >= 0 && row < rows.rows)
          return tie_rank(uint32_t(rows.position + row * rows.columns + at % rows.stride), seed);
      }
      return uint32_t(0);
    };
    std::nth_element(found.begin(), found.begin() + need, found.end(),
                     [&](const Candidate<T>& a, const Candidate<T>& b) { return rank(a) < rank(b); });
    found.resize(need);
  }
  if (!group.warm)
    group.margin = std::max(std::abs(threshold) * T(0.01), T(1e-6));
  else if (size > many)
    group.margin /= 2;
  else if (size < few)
    group.margin *= 2;
  group.warm = true, group.threshold = threshold;
}

// Scores that are not numbers rank below all others.
template <typename T>
void add_nans(ScoreState<T>& state, const ScoreGroup<T>& group) {
  for (const ScoredRows& rows : group.tensors)
    for (int64_t r = 0; r < rows.rows; ++r)
      for (int64_t at = rows.start + r * rows.stride; at < rows.start + r * rows.stride + rows.columns; ++at)
        if (std::isnan(state.values[at])) state.candidates.push_back({T(-1), at});
}

template <typename T>
void keep_active(const Replica<T>& net, const ScoreGroup<T>& group) {
  const ScoreState<T>& state = *net.scored;
  for (const ScoredRows& rows : group.tensors)
    for (int64_t at = rows.start; at < rows.start + rows.rows * rows.stride; ++at)
      net.values[at] = state.active[at] != 0 ? state.frozen[at] : T(0);
}

}  // namespace

#ifdef LOTTERYKIT_X86
namespace avx512 {
#define LK_TARGET LOTTERYKIT_AVX512
#define LK_BYTES 64
#define LK_LEVEL 2
#include "replica_kernels.h"
#undef LK_TARGET
#undef LK_BYTES
#undef LK_LEVEL
}  // namespace avx512
namespace avx2 {
#define LK_TARGET LOTTERYKIT_AVX2
#define LK_BYTES 32
#define LK_LEVEL 1
#include "replica_kernels.h"
#undef LK_TARGET
#undef LK_BYTES
#undef LK_LEVEL
}  // namespace avx2
#endif
namespace plain {
#define LK_TARGET
#define LK_BYTES 16
#define LK_LEVEL 0
#include "replica_kernels.h"
#undef LK_TARGET
#undef LK_BYTES
#undef LK_LEVEL
}  // namespace plain

// Builds the compact form: which neurons live, which are constant, and where every kept entry goes.
template <typename T>
struct Compaction {
  Replica<T>& net;
  LiveNeurons neurons;
  std::vector<uint8_t> placed;
  std::vector<uint8_t> kept;

  int64_t depth() const { return int64_t(net.widths.size()) - 1; }
  int64_t weight_at(int64_t l, int64_t o, int64_t i) const { return net.full.weights[l] + o * net.widths[l] + i; }
  bool is_kept(int64_t at) const {
    return net.full.pruned == nullptr || net.scored != nullptr || !net.full.pruned[at];
  }

  // Appends an entry of the full buffers, or padding (-1).
  int64_t append(int64_t at) {
    net.origin.push_back(at);
    const bool real = at >= 0 && is_kept(at);
    if (real) placed[at] = 1;
    kept.push_back(real || at < 0);
    return int64_t(net.origin.size()) - 1;
  }
  void align() {
    while (net.origin.size() % entry_align) append(-1);
  }

  void add_layer(int64_t l) {
    LiveLayer layer{};
    layer.in = int64_t(neurons.live[l].size()), layer.out = int64_t(neurons.live[l + 1].size());
    layer.constants = int64_t(neurons.constant[l + 1].size());
    layer.stride = padded(layer.in);
    int64_t nnz = 0;
    for (const int32_t o : neurons.live[l + 1])
      for (const int32_t i : neurons.live[l]) nnz += is_kept(weight_at(l, o, i));
    layer.dense = net.scored != nullptr ||
                  (nnz > 0 && double(nnz) >= dense_above * double(layer.stride) * double(layer.out));
    layer.weights = int64_t(net.origin.size());
    if (layer.dense)
      add_dense(layer, l);
    else
      add_sparse(layer, l);
    align();
    layer.biases = int64_t(net.origin.size());
    for (const int32_t o : neurons.live[l + 1]) append(net.full.biases[l] + o);
    align();
    add_constants(layer, l);
    align();
    net.layers.push_back(std::move(layer));
  }

  void add_dense(const LiveLayer& layer, int64_t l) {
    for (const int32_t o : neurons.live[l + 1]) {
      for (const int32_t i : neurons.live[l]) append(weight_at(l, o, i));
      for (int64_t i = layer.in; i < layer.stride; ++i) append(-1);
    }
  }

  void add_sparse(LiveLayer& layer, int64_t l) {
    layer.row_offsets.push_back(0);
    for (const int32_t o : neurons.live[l + 1]) {
      for (const int32_t i : neurons.live[l])
        if (is_kept(weight_at(l, o, i))) {
          append(weight_at(l, o, i));
          layer.rows.push_back(neurons.place[l + 1][o]);
          layer.columns.push_back(neurons.place[l][i]);
        }
      layer.row_offsets.push_back(int32_t(layer.columns.size()));
    }
    const int64_t nnz = int64_t(layer.columns.size());
    layer.column_offsets.assign(layer.in + 1, 0);
    for (const int32_t c : layer.columns) ++layer.column_offsets[c + 1];
    for (int64_t c = 0; c < layer.in; ++c) layer.column_offsets[c + 1] += layer.column_offsets[c];
    std::vector<int32_t> next(layer.column_offsets.begin(), layer.column_offsets.end() - 1);
    layer.turned_rows.resize(nnz), layer.order.resize(nnz);
    for (int64_t k = 0; k < nnz; ++k) {
      const int32_t to = next[layer.columns[k]]++;
      layer.turned_rows[to] = layer.rows[k], layer.order[to] = int32_t(k);
    }
    layer.rows.resize(padded(nnz), 0), layer.columns.resize(padded(nnz), 0);
  }

  void add_constants(LiveLayer& layer, int64_t l) {
    for (int64_t o = 0; o < net.widths[l + 1]; ++o) {
      if (!neurons.heard[l + 1][o]) continue;
      for (const int32_t i : neurons.constant[l])
        if (is_kept(weight_at(l, o, i))) {
          const bool to_constant = !neurons.is_live(l + 1, o);
          layer.edges.push_back({neurons.place[l][i], neurons.place[l + 1][o], to_constant, append(weight_at(l, o, i))});
          layer.fed_by_constants |= !to_constant;
        }
    }
    layer.outward = layer.edges;
    std::stable_sort(layer.outward.begin(), layer.outward.end(),
                     [](const ConstantEdge& a, const ConstantEdge& b) { return a.from < b.from; });
    align();
    layer.constant_biases = int64_t(net.origin.size());
    for (const int32_t o : neurons.constant[l + 1]) append(net.full.biases[l] + o);
  }

  // Kept entries without a gradient that move all the same: by weight decay, or by what their moments hold.
  void add_idle(int64_t from, int64_t count) {
    const Parameters<T>& full = net.full;
    for (int64_t at = from; at < from + count; ++at)
      if (!placed[at] && is_kept(at) &&
          ((net.training.weight_decay != 0 && full.values[at] != 0) || full.first[at] != 0 || full.second[at] != 0))
        append(at);
  }

  void run() {
    const int64_t d = depth();
    placed.assign(net.full.biases[d - 1] + net.widths[d], 0);
    neurons = live_neurons(net.widths,
                           [&](int64_t l, int64_t o, int64_t i) { return is_kept(weight_at(l, o, i)); });
    net.inputs = neurons.live[0];
    for (int64_t l = 0; l < d; ++l) add_layer(l);
    for (int64_t l = 0; l < d && net.scored == nullptr; ++l) {
      add_idle(net.full.weights[l], net.widths[l] * net.widths[l + 1]);
      add_idle(net.full.biases[l], net.widths[l + 1]);
    }
    align();
    net.entries = int64_t(net.origin.size());
    for (Block<T>* block : {&net.values, &net.first, &net.second, &net.gradients}) block->grow(net.entries);
    for (int64_t k = 0; k < net.entries; ++k) {
      if (!kept[k]) net.masked = true;
      const int64_t at = net.origin[k];
      if (at < 0) continue;
      net.values[k] = net.full.values[at], net.first[k] = net.full.first[at], net.second[k] = net.full.second[at];
      if (!kept[k]) net.origin[k] = -1;
    }
    if (!net.masked) return;
    net.kept.grow(net.entries);
    for (int64_t k = 0; k < net.entries; ++k) net.kept[k] = T(kept[k]);
  }
};

template <typename T>
Replica<T>::Replica(const std::vector<int64_t>& widths_, const Parameters<T>& parameters, const Examples<T>& train_,
                    const Training& training_)
    : widths(widths_), full(parameters), training_data(train_), training(training_) {
  Compaction<T>{*this, {}, {}, {}}.run();
}

template <typename T>
Replica<T>::Replica(const std::vector<int64_t>& widths_, const Parameters<T>& parameters, const Scores<T>& scores,
                    const Examples<T>& train_, const Training& training_)
    : widths(widths_),
      full(parameters),
      training_data(train_),
      training(training_),
      full_scores(scores),
      scored(std::make_unique<ScoreState<T>>()) {
  Compaction<T>{*this, {}, {}, {}}.run();
  for (Block<T>* block : {&scored->values, &scored->frozen, &scored->active}) block->grow(entries);
  for (int64_t k = 0; k < entries; ++k) scored->frozen[k] = values[k];
  for (size_t g = 0; g < full_scores.groups.size(); ++g) {
    ScoreGroup<T> group;
    group.seed = full_scores.seeds[g];
    for (const int64_t tensor : full_scores.groups[g]) {
      const LiveLayer& layer = layers[tensor / 2];
      const int64_t columns = tensor % 2 ? layer.out : layer.in, rows = tensor % 2 ? 1 : layer.out;
      group.tensors.push_back({tensor % 2 ? layer.biases : layer.weights, rows, columns, padded(columns),
                               group.entries});
      group.entries += rows * columns;
    }
    scored->groups.push_back(std::move(group));
  }
  read_scores();
}

template <typename T>
void Replica<T>::read_scores() {
  for (int64_t k = 0; k < entries; ++k) {
    const int64_t at = origin[k];
    scored->values[k] = at < 0 ? std::numeric_limits<T>::quiet_NaN() : full_scores.values[at];
    scored->active[k] = T(at >= 0 && full_scores.active[at]);
    first[k] = at < 0 ? T(0) : full.first[at], second[k] = at < 0 ? T(0) : full.second[at];
  }
}

template <typename T>
void Replica<T>::keep(const std::vector<int64_t>& counts, Isa isa) {
  const FlushDenormals flush;
  (void)flush;
  keeps = counts;
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) return avx512::choose(*this);
  if (isa == Isa::avx2) return avx2::choose(*this);
#endif
  (void)isa;
  plain::choose(*this);
}

namespace {

template <typename T>
void prepare(const Replica<T>& net, Workspace<T>& work) {
  const int64_t depth = int64_t(net.layers.size());
  work.activation_at.assign(depth + 1, 0), work.turned_at.assign(depth, 0);
  work.bias_at.assign(depth, 0), work.constant_at.assign(depth + 2, 0);
  int64_t neurons = padded(int64_t(net.inputs.size())), turned = 0, biases = 0;
  for (int64_t l = 0; l < depth; ++l) {
    const LiveLayer& layer = net.layers[l];
    work.activation_at[l + 1] = neurons * most_lanes;
    neurons += layer.out;
    work.turned_at[l] = turned;
    turned += layer.dense ? most_lanes * layer.stride : 0;
    work.bias_at[l] = biases;
    biases += padded(layer.out);
    work.constant_at[l + 2] = work.constant_at[l + 1] + layer.constants;
  }
  work.activations.grow(neurons * most_lanes), work.deltas.grow(neurons * most_lanes);
  work.biases.grow(biases);
  work.constants.grow(work.constant_at[depth + 1]), work.constant_deltas.grow(work.constant_at[depth + 1]);
  work.turned.grow(turned);
}

}  // namespace

template <typename T>
bool Replica<T>::train(const int64_t* order, int64_t from, int64_t to, int64_t batch_size,
                       const double* learning_rates, int64_t step, Workspace<T>& work, Watch& watch,
                       bool first_thread, Isa isa) {
  const FlushDenormals flush;
  (void)flush;
  prepare(*this, work);
  for (int64_t number = 0; from < to; from += batch_size, ++number) {
    if (first_thread && number % steps_between_polls == 0) watch.tick();
    if (watch.stopped()) return false;
    const int64_t count = std::min(batch_size, to - from);
    const double rate = learning_rates[number];
    const int64_t now = step + number + 1;
#ifdef LOTTERYKIT_X86
    if (isa == Isa::avx512)
      avx512::train_step(*this, order + from, count, rate, now, work);
    else if (isa == Isa::avx2)
      avx2::train_step(*this, order + from, count, rate, now, work);
    else
#endif
      plain::train_step(*this, order + from, count, rate, now, work);
  }
  (void)isa;
  return true;
}

template <typename T>
Evaluation Replica<T>::evaluate(const Examples<T>& data, Workspace<T>& work, Isa isa) const {
  const FlushDenormals flush;
  (void)flush;
  prepare(*this, work);
#ifdef LOTTERYKIT_X86
  if (isa == Isa::avx512) return avx512::evaluate(*this, data, work);
  if (isa == Isa::avx2) return avx2::evaluate(*this, data, work);
#endif
  (void)isa;
  return plain::evaluate(*this, data, work);
}

template <typename T>
void Replica<T>::write_back(Isa isa) {
  if (scored != nullptr) {
    // The choice among ones is the mask itself: a kept weight may be 0.
    Block<T> ones(entries);
    std::fill_n(ones.get(), entries, T(1));
    std::swap(ones, scored->frozen);
    keep(keeps, isa);
    for (int64_t k = 0; k < entries; ++k)
      if (origin[k] >= 0) full_scores.kept[origin[k]] = values[k] != 0;
    std::swap(ones, scored->frozen);
    keep(keeps, isa);
  }
  for (int64_t k = 0; k < entries; ++k) {
    const int64_t at = origin[k];
    if (at < 0) continue;
    (scored != nullptr ? full_scores.values : full.values)[at] = (scored != nullptr ? scored->values : values)[k];
    full.first[at] = first[k], full.second[at] = second[k];
  }
}

template class Replica<float>;
template class Replica<double>;

}  // namespace lotterykit
