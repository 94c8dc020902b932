// Which weights the scores of a replica keep, in every step of score training: exactly the asked number of each
// group. A radix selection by one block, eight bits a pass, over all groups at once: digits of the score's key, then
// of the tie rank where more are tied than kept.
#pragma once
#include <type_traits>

#include "launch.h"
#include "replica.h"

namespace lotterykit {
namespace {

constexpr int choice_groups = 8;  // counted at once
constexpr int choice_bins = 256;

// A group's search: entries whose digits so far are those of `prefix` compete for `need` places.
struct GroupSearch {
  uint64_t prefix;
  uint32_t rank_prefix;
  int32_t need;
  enum : int32_t { by_score, by_rank, done, by_rule } state;
};

struct Choice {
  uint32_t bins[choice_groups][choice_bins];
  GroupSearch groups[choice_groups];
};

// Larger |score|, larger key; a NaN ranks below all numbers.
__device__ __forceinline__ uint64_t choice_key(float score) {
  return score == score ? uint64_t(__float_as_uint(score) & 0x7fffffffu) + 1 : 0;
}
__device__ __forceinline__ uint64_t choice_key(double score) {
  return score == score ? (uint64_t(__double_as_longlong(score)) & ~(uint64_t(1) << 63)) + 1 : 0;
}

// Calls visit(flat place, position in the group, number among the groups from `first` on) for the entries of the
// threads of a block, each in turn.
template <class Visit>
__device__ __forceinline__ void each_scored(const DeviceShape& s, const uint32_t* image, int first, Visit visit) {
  const ScoredTensor* tensors = reinterpret_cast<const ScoredTensor*>(image + s.scored);
  for (int number = 0; number < s.scored_count; ++number) {
    const ScoredTensor tensor = tensors[number];
    const int group = tensor.group - first;
    if (group < 0 || group >= choice_groups) continue;
    for (int i = int(threadIdx.x); i < tensor.rows * tensor.columns; i += int(blockDim.x))
      visit(tensor.start + i / tensor.columns * tensor.stride + i % tensor.columns, tensor.position + i, group);
  }
}

// One warp: the bin, from the top, in which the need-th entry lies.
__device__ __forceinline__ void pick_bin(const uint32_t (&bins)[choice_bins], GroupSearch& search, int shift) {
  constexpr int share = choice_bins / warp_lanes;
  const int lane = int(threadIdx.x) % warp_lanes, top = choice_bins - 1 - lane * share;
  uint32_t sum = 0;
  for (int i = 0; i < share; ++i) sum += bins[top - i];
  uint32_t through = sum;
#pragma unroll
  for (int by = 1; by < warp_lanes; by *= 2) {
    const uint32_t before = __shfl_up_sync(every_lane, through, unsigned(by));
    if (lane >= by) through += before;
  }
  const uint32_t need = uint32_t(search.need), above = through - sum;
  __syncwarp();
  if (above >= need || through < need) return;
  uint32_t left = need - above;
  int bin = top;
  for (; bins[bin] < left; --bin) left -= bins[bin];
  if (search.state == GroupSearch::by_score) search.prefix |= uint64_t(bin) << shift;
  else search.rank_prefix |= uint32_t(bin) << shift;
  search.need = int32_t(left);
  if (bins[bin] == left) search.state = GroupSearch::done;  // the bin is kept whole
}

template <typename T>
__device__ __forceinline__ bool competes(const GroupSearch& search, uint64_t key, int shift) {
  constexpr int bits = 8 * int(sizeof(T));
  return shift + 8 == bits || ((key ^ search.prefix) >> (shift + 8)) == 0;
}

// Room for it, if it is wanted at all.
__device__ __forceinline__ Choice* choice_room(std::true_type) {
  __shared__ Choice choice;
  return &choice;
}
__device__ __forceinline__ Choice* choice_room(std::false_type) { return nullptr; }

// Writes the frozen weight of what is kept, else 0; scores and what is active follow the frozen weights. All threads of the block; ends with a barrier.
template <typename T>
__device__ __forceinline__ void choose(const DeviceShape& s, const uint32_t* image, const T* frozen, T* values,
                                       const int64_t* keeps, Choice& choice) {
  const T *scores = frozen + s.entries, *active = scores + s.entries;
  const ScoredGroup* groups = reinterpret_cast<const ScoredGroup*>(image + s.groups);
  const int thread = int(threadIdx.x), threads = int(blockDim.x), warp = thread / warp_lanes;
  for (int first = 0; first < s.group_count; first += choice_groups) {
    const int count = min(choice_groups, s.group_count - first);
    __syncthreads();
    for (int g = thread; g < count; g += threads) {
      const int64_t keep = keeps[first + g];
      GroupSearch search{0, 0, int32_t(keep), GroupSearch::by_score};
      if (keep < 0) search.state = GroupSearch::by_rule;
      else if (keep == 0) search.prefix = ~uint64_t(0), search.state = GroupSearch::done;
      else if (keep >= groups[first + g].entries) search.state = GroupSearch::done;
      choice.groups[g] = search;
    }
    for (int phase = 0; phase < 2; ++phase) {
      const bool by_rank = phase == 1;
      const auto wanted = by_rank ? GroupSearch::by_rank : GroupSearch::by_score;
      for (int shift = (by_rank ? 32 : 8 * int(sizeof(T))) - 8; shift >= 0; shift -= 8) {
        __syncthreads();
        bool open = false;
        for (int g = 0; g < count; ++g) open |= choice.groups[g].state == wanted;
        if (!open) break;
        for (int bin = thread; bin < count * choice_bins; bin += threads)
          choice.bins[bin / choice_bins][bin % choice_bins] = 0;
        __syncthreads();
        each_scored(s, image, first, [&](int k, int position, int g) {
          const GroupSearch& search = choice.groups[g];
          if (search.state != wanted) return;
          const uint64_t key = choice_key(scores[k]);
          if (!by_rank) {
            if (competes<T>(search, key, shift)) atomicAdd(&choice.bins[g][key >> shift & 255], 1u);
          } else if (key == search.prefix) {
            const uint32_t rank = ~tie_rank(uint32_t(position), groups[first + g].seed);
            if (uint64_t(rank ^ search.rank_prefix) >> (shift + 8) == 0)
              atomicAdd(&choice.bins[g][rank >> shift & 255], 1u);
          }
        });
        __syncthreads();
        for (int g = warp; g < count; g += threads / warp_lanes)
          if (choice.groups[g].state == wanted) pick_bin(choice.bins[g], choice.groups[g], shift);
      }
      __syncthreads();
      if (!by_rank)
        for (int g = thread; g < count; g += threads)
          if (choice.groups[g].state == GroupSearch::by_score) choice.groups[g].state = GroupSearch::by_rank;
    }
    __syncthreads();
    each_scored(s, image, first, [&](int k, int position, int g) {
      const GroupSearch search = choice.groups[g];
      const T score = scores[k];
      bool kept;
      if (search.state == GroupSearch::by_rule) {
        kept = keeps[first + g] == every_active ? active[k] != 0 : score >= T(0.5);
      } else {
        const uint64_t key = choice_key(score);
        kept = key > search.prefix;
        if (key == search.prefix)
          kept = search.rank_prefix == 0 ||
                 ~tie_rank(uint32_t(position), groups[first + g].seed) >= search.rank_prefix;
      }
      values[k] = kept ? frozen[k] : T(0);
    });
  }
  __syncthreads();
}

}  // namespace
}  // namespace lotterykit
