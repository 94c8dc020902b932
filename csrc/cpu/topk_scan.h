// The one pass over the scores: writes the masks of what a bracket decides, collects what it leaves open.
#pragma once
#include <cstdint>
#include <cstring>

#include "../tie_order.h"
#include "topk_mask.h"

namespace lotterykit {

// A key orders entries: score first, then falling tie rank, so that the largest keys are kept. Keys are
// distinct, and -0.0 and 0.0 share a score.
template <typename T>
struct Order;
template <>
struct Order<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};
template <>
struct Order<double> {
  using Bits = uint64_t;
  using Key = unsigned __int128;
};

template <typename T>
inline typename Order<T>::Key key_of(T score, uint32_t rank) {
  using Bits = typename Order<T>::Bits;
  constexpr Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  Bits bits;
  std::memcpy(&bits, &score, sizeof(T));
  const Bits ordered = (bits & sign) ? sign - (bits & ~sign) : sign + bits;
  return typename Order<T>::Key(ordered) << 32 | uint32_t(~rank);
}

template <typename T>
inline T score_of(typename Order<T>::Key key) {
  using Bits = typename Order<T>::Bits;
  constexpr Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  const Bits ordered = Bits(key >> 32);
  const Bits bits = ordered < sign ? (sign - ordered) | sign : ordered - sign;
  T score;
  std::memcpy(&score, &bits, sizeof(T));
  return score;
}

// Entries are ordered by score, then by rising tie rank; all are distinct. An entry before `high` is kept, one
// after `low` is dropped, those from `high` to `low` (both included) are candidates.
template <typename T>
struct Bracket {
  T low, high;
  uint32_t low_rank, high_rank;
  bool whole() const { return low_rank == UINT32_MAX && high_rank == 0; }  // all that tie with its ends
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

constexpr int32_t block_length = 32768;  // the most: 128 KiB of floats, so scores and mask stay in L2

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

// The keys of `count` entries of a block, by their positions.
template <typename T>
void gather_keys(const Block<T>& block, const uint32_t* positions, int32_t count, TieSeed seed,
                 typename Order<T>::Key* keys, Isa isa);

}  // namespace lotterykit
