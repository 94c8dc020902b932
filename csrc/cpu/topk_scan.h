// The one pass over the scores: writes the masks of what a bracket decides, collects what it leaves open.
#pragma once
#include <cstdint>

#include "../tie_order.h"
#include "topk_mask.h"

namespace lotterykit {

// Entries are ordered by score, then by rising tie rank; all are distinct. An entry before `high` is kept, one
// after `low` is dropped, those from `high` to `low` (both included) are candidates.
template <typename T>
struct Bracket {
  T low, high;
  uint32_t low_rank, high_rank;
};

// A piece of one tensor; `position` is the flat position of its first entry. Borrowed pointers, as in Entries.
template <typename T>
struct Block {
  const T* scores;
  const uint8_t* within;
  uint8_t* mask;
  uint32_t position;
  int32_t length;
};

// The positions of candidates go to `out`, which has room for block.length + scan_slack of them: vector stores
// write whole vectors past the last one.
constexpr int scan_slack = 16;

struct Scanned {
  int64_t kept;
  int32_t candidates;
  bool nan;
};

template <typename T>
Scanned scan(const Block<T>& block, const Bracket<T>& bracket, TieSeed seed, uint32_t* out, Isa isa);

}  // namespace lotterykit
