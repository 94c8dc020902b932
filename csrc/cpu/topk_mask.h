// Exact selection of the k best scores over many tensors, written as bool masks.
#pragma once
#include <cstdint>

#include "runtime.h"

namespace lotterykit {

// One contiguous tensor. `scores` holds `length` floats or doubles; `within` is null or holds `length`
// bytes, and only entries with a non-zero byte compete; `mask` receives `length` bytes, 0 or 1.
// All three are borrowed for the call and may have any alignment that their element type allows.
struct Entries {
  const void* scores;
  const uint8_t* within;
  uint8_t* mask;
  int64_t length;
};

enum class Dtype { f32, f64 };
enum class Status { ok, nan, too_few, interrupted };

struct Outcome {
  Status status;
  int64_t tensor;     // nan: which tensor
  int64_t index;      // nan: which of its entries
  int64_t competing;  // number of competing entries
  double threshold;   // ok: kept is what lies above it,
  int64_t rank;       // or equals it and has at most this tie rank, in [-1, 2^32)
};

// Where the threshold is expected: between the entry of score `low` and tie rank `low_rank` and that of `high`
// and `high_rank`, both included. Scores that change little from call to call need no sample then.
struct Guess {
  double low, high;
  uint32_t low_rank, high_rank;
};

// Keeps exactly k competing entries: those with score > T, and those with score == T and h <= H, where h is
// a bijection of the entry's flat position (over all entries of all tensors) drawn by `seed`. The result
// does not depend on `threads`, `isa` or `guess`, which may be null: a wrong one costs a pass. The total number of entries must be below 2^32.
Outcome topk_mask(const Entries* tensors, int64_t count, Dtype dtype, int64_t k, uint64_t seed, const Guess* guess,
                  int threads, Isa isa, Poll poll, void* context);

}  // namespace lotterykit
