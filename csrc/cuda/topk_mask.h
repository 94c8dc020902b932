// Exact selection of the k best scores over many tensors on a CUDA device, written as bool masks.
#pragma once
#include <cstdint>

namespace lotterykit {

// One contiguous tensor; all pointers are device pointers that must live until the stream has run the work.
// `scores` holds `length` floats or doubles, `within` is null or holds `length` bytes (only entries with a
// non-zero byte compete), `mask` receives `length` bytes. `offset` counts the entries, `first_chunk` the
// chunks of topk_chunk entries, of the tensors before this one. Laid out as six int64 words.
struct DeviceEntries {
  const void* scores;
  const uint8_t* within;
  uint8_t* mask;
  int64_t length, offset, first_chunk;
};

constexpr int64_t topk_chunk = 8192;
constexpr int topk_bins = 2048;

// Device memory of the selection. The caller reads `competing` and `nan_position` when the stream is done.
struct TopkWorkspace {
  int64_t competing;          // competing entries; if fewer than k, the masks are all False
  uint64_t nan_position;      // least flat position of a competing NaN, or all ones
  uint64_t score_prefix;      // digits of the threshold found so far, zeros below
  uint32_t rank_prefix;
  uint32_t done;
  uint64_t need;              // entries to keep among those that share the prefix
  uint32_t histogram[topk_bins];
};

// Same masks as the CPU's topk_mask. `table` (device) holds `count` rows, `chunks` chunks in all; `workspace`
// (device, 8-byte aligned) needs no preparation. Queues everything on `stream` (a cudaStream_t) of `device`
// and returns at once: null, or the text of a CUDA error. Leaves `device` current on the calling thread: call it
// inside a guard of torch's for that device.
const char* topk_mask_cuda(const DeviceEntries* table, int64_t count, int64_t chunks, bool is_double, int64_t k,
                           uint64_t seed, TopkWorkspace* workspace, int device, void* stream);

}  // namespace lotterykit
