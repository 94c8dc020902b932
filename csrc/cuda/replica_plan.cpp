#include "replica_plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace lotterykit {

namespace {

// Share of a layer's weights kept from which it is computed dense: three words are read for a sparse weight and
// one for a dense one. Counted, not measured.
constexpr double dense_above = 0.33;
constexpr int64_t row_align = 4;      // weights of a dense row are read four at a time
constexpr int64_t most_chunks = 8;
constexpr int64_t most_resident = 4;  // blocks a multiprocessor: fewer threads than theirs leave too many idle
// A block's own shared memory: the kernel's and the driver's; and what the choice of scores takes.
constexpr int64_t block_reserve = 2 << 10, choice_reserve = 10 << 10;

int64_t aligned(int64_t n) { return (n + row_align - 1) / row_align * row_align; }

// Appends the parts of a plan in the order of the flat arrays, and then its image.
template <typename T>
struct Layout {
  const std::vector<int64_t>& widths;
  const Parameters<T>& full;
  const Training& training;
  const Scores<T>* scores;
  DeviceShape& shape;
  std::vector<int64_t>& origin;
  LiveNeurons neurons{};
  std::vector<DeviceLayer> layers{};
  std::vector<int32_t> row_start{0}, places{}, column_start{}, turned{}, edge_start{0}, edge_words{}, out_start{},
      out_edges{};
  std::vector<int32_t> constant_at{};  // by layer: the number of its first constant neuron
  std::vector<uint8_t> kept{}, placed{};
  std::vector<ScoredTensor> scored{};
  std::vector<ScoredGroup> groups{};

  int64_t depth() const { return int64_t(widths.size()) - 1; }
  int64_t weight_at(int64_t l, int64_t o, int64_t i) const { return full.weights[l] + o * widths[l] + i; }
  bool is_kept(int64_t at) const { return full.pruned == nullptr || scores != nullptr || !full.pruned[at]; }

  // Appends an entry of the full buffers, or padding (-1).
  int32_t append(int64_t at) {
    const bool real = at >= 0 && is_kept(at);
    if (real) placed[at] = 1;
    kept.push_back(real);
    origin.push_back(real ? at : -1);
    return int32_t(origin.size()) - 1;
  }
  void align() {
    while (origin.size() % row_align) append(-1);
  }

  // What must hold for neurons to be 16-bit numbers and entries 32-bit ones.
  void check() const {
    int64_t numbers = 0, entries = 0;
    for (int64_t l = 0; l <= depth(); ++l) {
      numbers += int64_t(neurons.live[l].size() + neurons.constant[l].size());
      if (l < depth()) entries += (widths[l] + row_align) * (widths[l + 1] + row_align);
    }
    if (numbers >= 1 << 16 || entries >= int64_t(1) << 29)
      throw std::invalid_argument("the CUDA replica trainer takes networks of fewer than 65536 neurons that reach an "
                                  "output and fewer than 2^29 weights, got " +
                                  std::to_string(numbers) + " and about " + std::to_string(entries));
  }

  void add_layers() {
    int32_t row = int32_t(neurons.live[0].size()), constants = 0;
    shape.inputs = row;
    constant_at.assign(depth() + 1, 0);
    for (int64_t l = 0; l < depth(); ++l) {
      DeviceLayer layer{};
      layer.in = int32_t(neurons.live[l].size()), layer.out = int32_t(neurons.live[l + 1].size());
      layer.stride = int32_t(aligned(layer.in));
      layer.in_row = row - layer.in, layer.out_row = row;
      layer.constants = constants, layer.constant_count = int32_t(neurons.constant[l + 1].size());
      constant_at[l + 1] = constants;
      row += layer.out, constants += layer.constant_count;
      int64_t nnz = 0;
      for (const int32_t o : neurons.live[l + 1])
        for (const int32_t i : neurons.live[l]) nnz += is_kept(weight_at(l, o, i));
      const double room = double(layer.stride) * double(layer.out);
      layer.dense = scores != nullptr || (nnz > 0 && double(nnz) >= dense_above * room);
      layers.push_back(layer);
    }
    shape.rows = row, shape.constants = constants, shape.outputs = layers.back().out;
  }

  void add_sparse() {
    for (int64_t l = 0; l < depth(); ++l)
      for (int32_t o = 0; o < layers[l].out; ++o) {
        for (int32_t i = 0; !layers[l].dense && i < layers[l].in; ++i) {
          const int64_t at = weight_at(l, neurons.live[l + 1][o], neurons.live[l][i]);
          if (!is_kept(at)) continue;
          append(at);
          places.push_back(int32_t(uint32_t(layers[l].out_row + o) << 16 | uint32_t(layers[l].in_row + i)));
        }
        row_start.push_back(int32_t(places.size()));
      }
    shape.sparse = int32_t(places.size());
    transpose(places, [&](int32_t word) { return (word & 0xffff) - shape.inputs; }, shape.rows - shape.inputs,
              column_start, turned);
  }

  // starts [count + 1] and the numbers of `words` sorted by column; those of a negative column are left out.
  template <class Column>
  static void transpose(const std::vector<int32_t>& words, Column column, int32_t count, std::vector<int32_t>& starts,
                        std::vector<int32_t>& order) {
    starts.assign(count + 1, 0);
    for (const int32_t word : words)
      if (column(word) >= 0) ++starts[column(word) + 1];
    for (int32_t c = 0; c < count; ++c) starts[c + 1] += starts[c];
    order.resize(starts[count]);
    std::vector<int32_t> next(starts.begin(), starts.end() - 1);
    for (size_t k = 0; k < words.size(); ++k)
      if (column(words[k]) >= 0) order[next[column(words[k])]++] = int32_t(k);
  }

  void add_dense() {
    align();
    for (int64_t l = 0; l < depth(); ++l) {
      DeviceLayer& layer = layers[l];
      layer.weights = int32_t(origin.size());
      if (!layer.dense) continue;
      for (const int32_t o : neurons.live[l + 1]) {
        for (const int32_t i : neurons.live[l]) append(weight_at(l, o, i));
        align();
      }
    }
  }

  void add_edges_of(int64_t l, int32_t neuron, int32_t target) {
    for (const int32_t i : neurons.constant[l]) {
      const int64_t at = weight_at(l, neuron, i);
      if (!is_kept(at)) continue;
      append(at);
      const uint32_t from = uint32_t(constant_at[l] + neurons.place[l][i]);
      edge_words.push_back(int32_t(uint32_t(target) << 16 | from));
    }
    edge_start.push_back(int32_t(edge_words.size()));
  }

  void add_biases_and_edges() {
    shape.biases = int32_t(origin.size());
    for (int64_t l = 0; l < depth(); ++l)
      for (const int32_t o : neurons.live[l + 1]) append(full.biases[l] + o);
    shape.edges = int32_t(origin.size());
    int32_t target = 0;
    for (const auto* kind : {&neurons.live, &neurons.constant})
      for (int64_t l = 0; l < depth(); ++l)
        for (const int32_t o : (*kind)[l + 1]) add_edges_of(l, o, target++);
    shape.edge_count = int32_t(edge_words.size());
    transpose(edge_words, [](int32_t word) { return word & 0xffff; }, shape.constants, out_start, out_edges);
    shape.constant_biases = int32_t(origin.size());
    for (int64_t l = 0; l < depth(); ++l)
      for (const int32_t o : neurons.constant[l + 1]) append(full.biases[l] + o);
  }

  // Kept entries without a gradient that move all the same: by weight decay, or by what their moments hold.
  void add_idle(int64_t from, int64_t count) {
    for (int64_t at = from; at < from + count; ++at)
      if (!placed[at] && is_kept(at) &&
          ((training.weight_decay != 0 && full.values[at] != 0) || full.first[at] != 0 || full.second[at] != 0))
        append(at);
  }

  void run() {
    const int64_t d = depth();
    placed.assign(full.biases[d - 1] + widths[d], 0);
    neurons = live_neurons(widths, [&](int64_t l, int64_t o, int64_t i) { return is_kept(weight_at(l, o, i)); });
    check();
    shape.depth = int32_t(d), shape.input_width = int32_t(widths.front());
    add_layers();
    add_sparse();
    add_dense();
    add_biases_and_edges();
    shape.idle = int32_t(origin.size());
    for (int64_t l = 0; l < d && scores == nullptr; ++l) {
      add_idle(full.weights[l], widths[l] * widths[l + 1]);
      add_idle(full.biases[l], widths[l + 1]);
    }
    align();
    shape.entries = int32_t(origin.size());
    if (scores != nullptr) add_scores();
  }

  void add_scores() {
    for (size_t g = 0; g < scores->groups.size(); ++g) {
      int32_t entries = 0;
      for (const int64_t tensor : scores->groups[g]) {
        const DeviceLayer& layer = layers[tensor / 2];
        const bool bias = tensor % 2;
        ScoredTensor one{layer.weights, layer.out, layer.in, layer.stride, entries, int32_t(g)};
        if (bias) one = {shape.biases + layer.out_row - shape.inputs, 1, layer.out, layer.out, entries, int32_t(g)};
        entries += one.rows * one.columns;
        scored.push_back(one);
      }
      groups.push_back({entries, tie_seed(scores->seeds[g])});
    }
    shape.scored_count = int32_t(scored.size()), shape.group_count = int32_t(groups.size());
  }

  // The head is written again when the plan knows where all is to lie.
  std::vector<uint32_t> image() {
    std::vector<uint32_t> words(sizeof(DeviceShape) / 4);
    const auto add = [&](const void* from, size_t count) {
      const size_t at = words.size();
      words.resize(at + count);
      if (count) std::memcpy(words.data() + at, from, 4 * count);
      return int32_t(at);
    };
    const auto add_all = [&](const std::vector<int32_t>& values) { return add(values.data(), values.size()); };
    shape.layers = add(layers.data(), layers.size() * sizeof(DeviceLayer) / 4);
    shape.used_inputs = add_all(neurons.live[0]);
    shape.row_start = add_all(row_start), shape.places = add_all(places);
    shape.column_start = add_all(column_start), shape.turned = add_all(turned);
    shape.edge_start = add_all(edge_start), shape.edge_words = add_all(edge_words);
    shape.out_start = add_all(out_start), shape.out_edges = add_all(out_edges);
    std::vector<uint32_t> bits((kept.size() + 31) / 32);
    for (size_t k = 0; k < kept.size(); ++k) bits[k / 32] |= uint32_t(kept[k]) << (k % 32);
    shape.kept = add(bits.data(), bits.size());
    shape.scored = add(scored.data(), scored.size() * sizeof(ScoredTensor) / 4);
    shape.groups = add(groups.data(), groups.size() * sizeof(ScoredGroup) / 4);
    while (words.size() % row_align) words.push_back(0);
    shape.words = int32_t(words.size());
    return words;
  }
};

}  // namespace

template <typename T>
ReplicaPlan<T>::ReplicaPlan(const std::vector<int64_t>& widths, const Parameters<T>& full, const Training& training_,
                            const DeviceBounds& bounds, std::unique_ptr<Scores<T>> scores)
    : training(training_), full_(full), scores_(std::move(scores)) {
  Layout<T> layout{widths, full_, training, scores_.get(), shape, origin};
  layout.run();
  image = layout.image();
  place(bounds);
  std::memcpy(image.data(), &shape, sizeof shape);
}

// How many Ts the kernel lays out as `work`: activations, their gradients, targets and sums, constant neurons.
template <typename T>
int64_t ReplicaPlan<T>::work_size() const {
  const int64_t lanes = int64_t(shape.chunks) * warp_lanes, above = shape.rows - shape.inputs;
  const int64_t targets = training.loss == Loss::mse ? shape.outputs : 1;
  return aligned((shape.rows + above + targets) * lanes + above * shape.chunks + 2 * int64_t(shape.constants));
}

// Activations first, then the weights, then moments. The moments, which a step reads once, stay outside where a
// second block takes their room: the one computes while the other waits at a barrier. Of scores there is one kernel
// with the weights inside, and one with nothing.
template <typename T>
void ReplicaPlan<T>::place(const DeviceBounds& bounds) {
  const int64_t reserve = block_reserve + (scored() ? choice_reserve : 0);
  const int64_t limit = bounds.block_bytes - reserve, size = int64_t(sizeof(T));
  const auto held = [&](int64_t bytes) { return bounds.multiprocessor_bytes / (bytes + reserve); };
  const auto work = [&] { return work_size() * size; };
  for (shape.chunks = 1; shape.chunks < most_chunks && shape.chunks * warp_lanes < bounds.batch_size;)
    shape.chunks *= 2;
  while (shape.chunks > 1 && work() > limit / 2) shape.chunks /= 2;
  passes_ = (bounds.batch_size + shape.chunks * warp_lanes - 1) / (shape.chunks * warp_lanes);

  const int64_t net = 4 * int64_t(shape.words) + size * shape.entries, moments = 2 * size * shape.entries;
  residence = Residence::none;
  if (work() <= limit) {
    residence = Residence::work, shared_bytes = work();
    if (shared_bytes + net <= limit) {
      residence = Residence::work_and_net, shared_bytes += net;
      const int64_t all = shared_bytes + moments;
      if (!scored() && all <= limit && held(all) >= std::min<int64_t>(2, held(shared_bytes)))
        residence = Residence::all, shared_bytes = all;
    } else if (scored()) {
      residence = Residence::none, shared_bytes = 0;
    }
  }
  // Blocks that share a multiprocessor share its registers.
  for (resident = 1; resident < most_resident && 2 * resident <= held(shared_bytes);) resident *= 2;
  threads = (scored() ? most_threads<T, true> : most_threads<T, false>) / int32_t(resident);
  cost = 3.0 * shape.entries * shape.chunks * warp_lanes * double(passes_);
}

template <typename T>
void ReplicaPlan<T>::read(T* state) const {
  const int64_t n = shape.entries;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = origin[k];
    state[k] = at < 0 ? T(0) : full_.values[at];
    state[n + k] = at < 0 ? T(0) : full_.first[at], state[2 * n + k] = at < 0 ? T(0) : full_.second[at];
    if (!scored()) continue;
    state[3 * n + k] = state[k], state[4 * n + k] = at < 0 ? T(0) : scores_->values[at];
    state[5 * n + k] = T(at >= 0 && scores_->active[at]);
  }
}

template <typename T>
void ReplicaPlan<T>::write_back(const T* state) {
  const int64_t n = shape.entries;
  for (int64_t k = 0; k < n; ++k) {
    const int64_t at = origin[k];
    if (at < 0) continue;
    (scored() ? scores_->values : full_.values)[at] = state[scored() ? 4 * n + k : k];
    full_.first[at] = state[n + k], full_.second[at] = state[2 * n + k];
  }
}

template class ReplicaPlan<float>;
template class ReplicaPlan<double>;

}  // namespace lotterykit
