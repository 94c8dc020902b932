// Radix selection: each pass histograms one digit of the keys that share the digits found so far, and one
// block picks the digit of the threshold. Score digits come first, then the digits of the tie rank; a pass
// whose bin is kept whole ends the search, and later passes return at once.
#include "topk_mask.h"

#include <algorithm>

#include "../tie_order.h"
#include "launch.h"

namespace lotterykit {
namespace {

constexpr int threads = 256;
constexpr int blocks_per_multiprocessor = 8;

// Order-preserving bits: larger scores have larger keys, and -0.0 and 0.0 share one.
__device__ __forceinline__ uint64_t score_key(float score) {
  const uint32_t bits = __float_as_uint(score), sign = 0x80000000u;
  return (bits & sign) ? sign - (bits & ~sign) : sign + bits;
}
__device__ __forceinline__ uint64_t score_key(double score) {
  const uint64_t bits = uint64_t(__double_as_longlong(score)), sign = uint64_t(1) << 63;
  return (bits & sign) ? sign - (bits & ~sign) : sign + bits;
}

// The row that owns `chunk`: the last one that begins at or before it (rows of length 0 own none).
__device__ __forceinline__ DeviceEntries row_of(const DeviceEntries* table, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (table[middle].first_chunk <= chunk) low = middle;
    else high = middle - 1;
  }
  return table[low];
}

__global__ void prepare(TopkWorkspace* w, int64_t k) {
  for (int bin = threadIdx.x; bin < topk_bins; bin += blockDim.x) w->histogram[bin] = 0;
  if (threadIdx.x == 0) {
    w->competing = 0;
    w->nan_position = ~uint64_t(0);
    w->score_prefix = 0;
    w->rank_prefix = 0;
    w->done = 0;
    w->need = uint64_t(k);
  }
}

// Counts digit `shift`..`shift + width` of the score (or of the inverted tie rank, for `of_rank`) over the
// competing entries whose higher digits are those of the prefix. `first` marks the first pass of all.
template <typename T, bool of_rank>
__global__ void __launch_bounds__(threads) count_digit(const DeviceEntries* table, int64_t count, int64_t chunks,
                                                      TieSeed seed, TopkWorkspace* w, int shift, int width,
                                                      bool first) {
  __shared__ uint32_t bins[topk_bins];
  if (w->done) return;
  for (int bin = threadIdx.x; bin < topk_bins; bin += threads) bins[bin] = 0;
  __syncthreads();
  const uint64_t score_prefix = w->score_prefix;
  const uint32_t rank_prefix = w->rank_prefix, digit = (1u << width) - 1;
  const int lane = threadIdx.x % 32;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const DeviceEntries row = row_of(table, count, chunk);
    const T* scores = static_cast<const T*>(row.scores);
    const int64_t from = (chunk - row.first_chunk) * topk_chunk;
    const int64_t to = min(from + topk_chunk, row.length);
    for (int64_t start = from; start < to; start += threads) {  // the same trips for all lanes of a warp
      const int64_t i = start + threadIdx.x;
      bool in = i < to && (row.within == nullptr || row.within[i]);
      uint32_t bin = 0;
      if (in) {
        const T score = scores[i];
        const uint64_t key = score_key(score);
        const uint64_t position = uint64_t(row.offset + i);
        if (first && score != score)
          atomicMin(reinterpret_cast<unsigned long long*>(&w->nan_position), (unsigned long long)position);
        if constexpr (of_rank) {
          const uint32_t rank = ~tie_rank(uint32_t(position), seed);
          in = key == score_prefix && (uint64_t(rank ^ rank_prefix) >> (shift + width)) == 0;
          bin = (rank >> shift) & digit;
        } else {
          in = first || ((key ^ score_prefix) >> (shift + width)) == 0;
          bin = uint32_t(key >> shift) & digit;
        }
      }
      // Pruned scores are mostly one value: one lane adds for all that share the first lane's bin.
      const unsigned counted = __ballot_sync(every_lane, in);
      if (counted == 0) continue;
      const int leader = __ffs(counted) - 1;
      const uint32_t hot = __shfl_sync(every_lane, bin, leader);
      const unsigned same = __ballot_sync(every_lane, in && bin == hot);
      if (lane == leader) atomicAdd(&bins[hot], uint32_t(__popc(same)));
      else if (in && bin != hot) atomicAdd(&bins[bin], 1u);
    }
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < topk_bins; bin += threads)
    if (bins[bin]) atomicAdd(&w->histogram[bin], bins[bin]);
}

// One block of topk_bins / 2 threads: the bin, from the top, in which the need-th entry lies.
__global__ void __launch_bounds__(topk_bins / 2) pick_digit(TopkWorkspace* w, int shift, bool of_rank, bool first) {
  constexpr int half = topk_bins / 2;
  __shared__ uint64_t sums[half];
  if (w->done) return;
  const int t = threadIdx.x, upper = topk_bins - 1 - 2 * t;
  const uint64_t counts[2] = {w->histogram[upper], w->histogram[upper - 1]};
  const uint64_t need = w->need;
  sums[t] = counts[0] + counts[1];
  for (int step = 1; step < half; step *= 2) {
    __syncthreads();
    const uint64_t before = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += before;
  }
  w->histogram[upper] = w->histogram[upper - 1] = 0;
  __syncthreads();  // every thread has read need, done and its counts
  if (first && t == half - 1) w->competing = int64_t(sums[t]);
  if (need == 0 || need > sums[half - 1]) {  // nothing is kept
    if (t == 0) {
      w->score_prefix = ~uint64_t(0);
      w->rank_prefix = ~uint32_t(0);
      w->done = 1;
    }
    return;
  }
  const uint64_t above = sums[t] - counts[0] - counts[1];
  if (above >= need || sums[t] < need) return;
  const bool lower = above + counts[0] < need;
  const uint64_t bin = uint64_t(lower ? upper - 1 : upper), left = need - above - (lower ? counts[0] : 0);
  if (of_rank) w->rank_prefix |= uint32_t(bin << shift);
  else w->score_prefix |= bin << shift;
  w->need = left;
  w->done = left == (lower ? counts[1] : counts[0]);
}

template <typename T>
__global__ void __launch_bounds__(threads) write_masks(const DeviceEntries* table, int64_t count, int64_t chunks,
                                                      TieSeed seed, const TopkWorkspace* w) {
  const uint64_t score_threshold = w->score_prefix;
  const uint32_t rank_threshold = w->rank_prefix;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const DeviceEntries row = row_of(table, count, chunk);
    const T* scores = static_cast<const T*>(row.scores);
    const int64_t from = (chunk - row.first_chunk) * topk_chunk;
    const int64_t to = min(from + topk_chunk, row.length);
    for (int64_t i = from + threadIdx.x; i < to; i += threads) {
      bool keep = row.within == nullptr || row.within[i];
      if (keep) {
        const uint64_t key = score_key(scores[i]);
        keep = key > score_threshold ||
               (key == score_threshold && ~tie_rank(uint32_t(row.offset + i), seed) >= rank_threshold);
      }
      row.mask[i] = keep;
    }
  }
}

template <typename T>
void queue(const DeviceEntries* table, int64_t count, int64_t chunks, int64_t k, TieSeed seed, TopkWorkspace* w,
           unsigned grid, cudaStream_t stream) {
  launch(prepare, 1, threads, 0, stream, w, k);
  bool first = true;
  for (int high = 8 * int(sizeof(T)); high > 0;) {
    const int width = std::min(high, 11), shift = high - width;
    launch(count_digit<T, false>, grid, threads, 0, stream, table, count, chunks, seed, w, shift, width, first);
    launch(pick_digit, 1, topk_bins / 2, 0, stream, w, shift, false, first);
    first = false;
    high = shift;
  }
  for (int high = 32; high > 0;) {
    const int width = std::min(high, 11), shift = high - width;
    launch(count_digit<T, true>, grid, threads, 0, stream, table, count, chunks, seed, w, shift, width, false);
    launch(pick_digit, 1, topk_bins / 2, 0, stream, w, shift, true, false);
    high = shift;
  }
  launch(write_masks<T>, grid, threads, 0, stream, table, count, chunks, seed, w);
}

}  // namespace

const char* topk_mask_cuda(const DeviceEntries* table, int64_t count, int64_t chunks, bool is_double, int64_t k,
                           uint64_t seed, TopkWorkspace* workspace, int device, void* stream) {
  // This library's CUDA runtime is its own (static), and so is its idea of the current device. Restoring that
  // idea would change the thread's context behind torch's runtime; the caller's guard restores torch's own.
  int multiprocessors = 1;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    const int64_t most = int64_t(multiprocessors) * blocks_per_multiprocessor;
    const unsigned grid = unsigned(std::max<int64_t>(1, std::min(chunks, most)));
    const auto on = static_cast<cudaStream_t>(stream);
    const TieSeed ties = tie_seed(seed);
    if (is_double) queue<double>(table, count, chunks, k, ties, workspace, grid, on);
    else queue<float>(table, count, chunks, k, ties, workspace, grid, on);
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace lotterykit
