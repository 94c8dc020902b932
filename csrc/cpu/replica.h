// The replica trainer: whole trainings of one small fully connected ReLU network, kept weights only.
//
// A replica copies its parameters into a compact form of its own and works on that until `write_back`. Its
// arithmetic runs on one thread and sees nothing of other replicas: a result depends on the replica alone.
#pragma once
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "../replica_network.h"
#include "runtime.h"

namespace lotterykit {

// Examples x [n][inputs]; y [n] class numbers (int64, within the outputs) or [n][outputs] values.
template <typename T>
struct Examples {
  const T* x;
  const void* y;
  int64_t n;
};

// What one evaluation found: the mean loss, and the share of right classes (0 for values).
struct Evaluation {
  double loss, accuracy;
};

constexpr int64_t most_lanes = 32;  // examples side by side in an activation
constexpr int64_t entry_align = 16;  // every block of the flat arrays starts on 64 bytes in float32

// A growing block of memory that starts on 64 bytes and is zero at first.
template <typename T>
class Block {
 public:
  Block() = default;
  explicit Block(int64_t n) { grow(n); }
  void grow(int64_t n) {
    if (n <= size_) return;
    data_.reset(static_cast<T*>(::operator new[](size_t(n) * sizeof(T), std::align_val_t(64))));
    size_ = n;
    for (int64_t i = 0; i < n; ++i) data_[i] = T(0);
  }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t size_ = 0;
};

// An edge out of a neuron that no input reaches: its value is one number for the whole batch.
struct ConstantEdge {
  int32_t from, to;
  bool to_constant;
  int64_t at;  // its place in the flat arrays
};

// One layer between live neurons: dense rows of `stride`, or the kept places in row order with their transpose.
struct LiveLayer {
  int64_t in, out, stride;
  bool dense;
  int64_t weights, biases, constant_biases;  // places in the flat arrays
  int64_t constants;                         // neurons here that no input reaches
  std::vector<int32_t> row_offsets, rows, columns;         // CSR and the row of each place
  std::vector<int32_t> column_offsets, turned_rows, order;  // its transpose; order: place in CSR
  std::vector<ConstantEdge> edges, outward;  // from the constant neurons below: by what they reach, by neuron
  bool fed_by_constants;                                   // whether an edge leads to a live neuron
};

// Rows of scored entries in the flat arrays; `position` of the first within its group, for the order of ties.
struct ScoredRows {
  int64_t start, rows, columns, stride, position;
};

// A score near the threshold and where it stands in the flat arrays.
template <typename T>
struct Candidate {
  T key;
  int64_t at;
};

// Scores counted together, and the bracket in which the last threshold was found: scores move little a step.
template <typename T>
struct ScoreGroup {
  std::vector<ScoredRows> tensors;
  int64_t entries = 0;
  uint64_t seed = 0;
  bool warm = false;
  T threshold = 0, margin = 0;
};

// The scores of a replica in the order of its flat arrays. Padding holds NaN, which no comparison keeps.
template <typename T>
struct ScoreState {
  Block<T> values, frozen, active;
  std::vector<ScoreGroup<T>> groups;
  std::vector<Candidate<T>> candidates;
};

// Scratch of a thread, sized for the largest replica it has seen.
template <typename T>
struct Workspace {
  Block<T> activations, deltas, turned, biases, constants, constant_deltas;
  std::vector<int64_t> activation_at, turned_at, bias_at, constant_at;
};

template <typename T>
class Replica {
 public:
  // Compacts: neurons that cannot reach an output are left out (their gradient is 0), those that no input
  // reaches become constants. The pruned entries of `parameters` must be 0.
  Replica(const std::vector<int64_t>& widths, const Parameters<T>& parameters, const Examples<T>& train,
          const Training& training);
  // Trains scores over frozen weights; nothing is left out, every layer is dense.
  Replica(const std::vector<int64_t>& widths, const Parameters<T>& parameters, const Scores<T>& scores,
          const Examples<T>& train, const Training& training);

  // Steps over the batches order[from:to] of `batch_size`; learning_rates has one value a step, `step` counts
  // the optimizer's steps before. False where the watch was stopped; `first_thread` may ask it.
  bool train(const int64_t* order, int64_t from, int64_t to, int64_t batch_size, const double* learning_rates,
             int64_t step, Workspace<T>& work, Watch& watch, bool first_thread, Isa isa);
  Evaluation evaluate(const Examples<T>& data, Workspace<T>& work, Isa isa) const;
  void write_back(Isa isa);

  // For score training: how many entries each group keeps from now on, or `every_active`, or `from_half`;
  // then the scores, moments and active entries are read anew where the caller changed them.
  void keep(const std::vector<int64_t>& counts, Isa isa);
  void read_scores();

  // The state is plain data for the kernels of replica_kernels.h.
  std::vector<int64_t> widths;
  Parameters<T> full;
  Examples<T> training_data;
  Training training;
  std::vector<int32_t> inputs;  // the inputs in use
  std::vector<LiveLayer> layers;
  Block<T> values, first, second, gradients, kept;  // flat; `kept` is 0 at pruned places of dense layers
  std::vector<int64_t> origin;                      // place in the full buffers, -1 for padding and pruned
  int64_t entries = 0;
  bool masked = false;  // whether `kept` has a 0
  Scores<T> full_scores{};
  std::unique_ptr<ScoreState<T>> scored;  // null where weights are trained
  std::vector<int64_t> keeps;
};

}  // namespace lotterykit
