// The replica trainer on a CUDA device: one block trains one network, many steps a launch, kept weights only.
//
// What a block computes depends on its replica alone: its own plan decides where its state lies and how many
// threads it has, and all sums are in an order that the plan fixes.
#pragma once
#include <cstdint>

#include "../replica_network.h"
#include "../tie_order.h"

namespace lotterykit {

constexpr int warp_lanes = 32;  // examples side by side in a warp

// Threads of a block at most, by the registers that they need: those that train scores need more.
template <typename T, bool SCORED>
constexpr int most_threads = sizeof(T) == 4 && !SCORED ? 512 : 256;

// What of a replica lies in shared memory: `work` are activations and their gradients, `net` is the structure
// with the weights, `moments` are the optimizer's.
enum class Residence : int32_t { all, work_and_net, work, none };
constexpr int residences = 4;

// One layer between live neurons. Neurons have numbers through all layers, the inputs in use first.
struct DeviceLayer {
  int32_t dense;             // rows of `stride` weights, else the kept places in the order of rows
  int32_t in, out, stride;
  int32_t in_row, out_row;   // the first neuron below and above
  int32_t weights;           // the first weight in the flat arrays
  int32_t constants, constant_count;  // the neurons above that no input reaches: first number, and how many
};

// A tensor whose entries have scores, in the flat arrays; `position` of its first within the entries that are
// counted together, for the order of ties.
struct ScoredTensor {
  int32_t start, rows, columns, stride, position, group;
};

// Entries counted together: how many, and the seed of their ties.
struct ScoredGroup {
  int32_t entries;
  TieSeed seed;
};

// A replica's structure as 32-bit words: this head, then arrays at the word offsets that it names. "Targets" are
// the live neurons but the inputs, then the constant ones.
//
// Flat arrays of parameters: kept weights of sparse layers in row order | dense layers | biases of the live
// neurons | weights out of constant neurons ("edges") | biases of the constant neurons | idle entries, which have
// no gradient and move by weight decay or by what their moments hold.
struct DeviceShape {
  int32_t words, depth, inputs, rows, outputs, constants;
  int32_t chunks;                  // warps of examples side by side, a power of two
  int32_t input_width;             // of the examples, of which `inputs` values are used
  int32_t entries, sparse, biases, edges, edge_count, constant_biases, idle;  // flat; idle: the first, to entries
  int32_t layers;                  // DeviceLayer [depth]
  int32_t used_inputs;             // [inputs]
  int32_t row_start;               // [rows - inputs + 1] into the sparse weights, by neuron
  int32_t places;                  // [sparse] neuron above << 16 | neuron below
  int32_t column_start, turned;    // the transpose: [rows - inputs + 1] by neuron below, then its places
  int32_t edge_start, edge_words;  // [targets + 1], then target << 16 | constant neuron
  int32_t out_start, out_edges;    // the transpose: [constants + 1], then numbers of edges
  int32_t kept;                    // bits [entries]: what the optimizer moves
  int32_t scored, scored_count;    // ScoredTensor [scored_count]; none where weights are trained
  int32_t groups, group_count;     // ScoredGroup [group_count]
};

// Which scores keep their weight (the highest |score|, or with `gem` those from 1/2 on), and Gem-Miner's slope of
// its penalty by a score, over the score.
struct ScoreRule {
  bool gem;
  double penalty;
};

// A learning rate over Adam's first bias correction (SGD: as it is), and 1 / the root of the second.
struct Pace {
  double rate, root_correction;
};

// What a network is evaluated on. Laid out as three int64 words.
template <typename T>
struct TestSet {
  const T* x;
  const void* y;
  int64_t n;
};

// A replica for the kernel; device pointers.
template <typename T>
struct DeviceReplica {
  const uint32_t* image;  // DeviceShape and what follows
  T* state;               // values [entries], first and second moments; frozen weights, scores, what is active
  T* gradients;           // [entries], where a batch takes several passes; else null
  T* work;                // where `work` is not in shared memory; else null
  const T* x_train;
  const void* y_train;
  const TestSet<T>* tests;
  int64_t test_count;
  double* found;          // of each test: mean loss, share of right classes
  Training training;
  ScoreRule scores;
};

// The order of the examples in this epoch, and paces of steps in it. Score training: how many entries
// each group keeps (or every_active, from_half), and how many when it is evaluated.
struct Turn {
  const int32_t* order;
  const Pace* paces;
  const int64_t *keeps, *ends;
};

// The examples order[from:to] in batches, from a batch's start; then the tests if asked for. The paces are those of
// the batches from `begin` on.
struct Span {
  int64_t begin, from, to, batch_size;
  bool evaluate;
};

// Replicas of one kind, residence, block size and need of shared memory: `members` are `count` numbers in `table`.
struct ReplicaLaunch {
  const int32_t* members;
  int64_t count;
  bool scored;
  Residence residence;
  int32_t threads;
  int64_t shared_bytes;
};

// Queues the span for the replicas of `launch` on `stream` (a cudaStream_t) of `device` and returns at once: null,
// or the text of a CUDA error. Leaves `device` current on the calling thread, as topk_mask_cuda.
template <typename T>
const char* train_replicas_cuda(const DeviceReplica<T>* table, const Turn* turns, const ReplicaLaunch& launch,
                                const Span& span, int device, void* stream);

// The part of it that trains scores: queues and does not ask for errors.
template <typename T>
void queue_score_training(const DeviceReplica<T>* table, const Turn* turns, const ReplicaLaunch& launch,
                          const Span& span, void* stream);

// Bytes of shared memory of a block at most, and of a multiprocessor; then the number of these. Null, or the text
// of a CUDA error.
const char* shared_memory_cuda(int device, int (&found)[3]);

}  // namespace lotterykit
