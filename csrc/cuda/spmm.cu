// Two ways. `slabs`: a block holds the lines of a slab of columns in shared memory, the next slab on its way, and
// the sums of up to a thousand rows in registers. `gather`: lines come straight from L2, where a row meets so few
// columns of a slab that bringing the slab costs more than it saves.
#include "spmm.h"

#include <algorithm>
#include <climits>

#include <cuda_pipeline_primitives.h>

#include "lines.h"

namespace lotterykit {
namespace {

constexpr int slab_warps = 16, slab_threads = 32 * slab_warps, set_rows = slab_warps * quarters;
constexpr int gather_warps = 8, gather_threads = 32 * gather_warps, gather_rows = gather_warps * quarters;
constexpr int chunk = line_lanes;     // places of a row that a quarter takes up at once, one a lane
constexpr int pair_room = chunk + 2;  // so that the four quarters of a warp read from different banks

// None of these is measured yet; each has a reason.
constexpr double least_density = 0.003;  // of slabs: below, a row meets two columns of a slab or fewer
constexpr int most_slab = 768;           // columns: two slabs and the rest fit into 227 KiB
constexpr int slab_step = 64;
constexpr int enough_turns = 2;  // blocks for each multiprocessor, below which smaller blocks share the work better

// A kept weight on its way to the lanes of its quarter.
template <typename Sum>
struct alignas(2 * sizeof(Sum)) Pair {
  Sum value;
  int32_t place;  // slabs: the byte where its line begins in shared memory; gather: its column, or -1
};

template <typename T>
struct Product {
  const unsigned char* lines;
  int64_t batch;
  const int32_t *offsets, *columns;
  const T *values, *bias;
  T* y;
  int rows, cols, row_blocks;
  bool relu;
};

// bias and activation of a sum, as y stores it. NaN stays NaN.
template <typename T>
__device__ __forceinline__ T finished(const Product<T>& p, int row, SumOf<T> sum) {
  if (p.bias) sum += Stored<T>::number(p.bias[row]);
  return Stored<T>::rounded(p.relu && sum <= 0 ? SumOf<T>(0) : sum);
}

// y's rows of one tile, from `held` [examples][stride]: rows stand together in y, examples in the lanes.
template <typename T>
__device__ __forceinline__ void write_tile(const Product<T>& p, const T* held, int stride, int64_t tile, int first,
                                           int rows, int threads) {
  for (int i = int(threadIdx.x); i < rows * line_examples<T>; i += threads) {
    const int e = i / rows, row = i % rows;
    const int64_t example = tile * line_examples<T> + e;
    if (example < p.batch && first + row < p.rows) p.y[example * p.rows + first + row] = held[e * stride + row];
  }
}

// Rows of `held` lie so far apart that lanes of eight granules write to different banks.
template <typename T, int rows>
constexpr int held_stride = rows + (sizeof(T) == 2 ? 2 : 1);

template <typename T>
struct Fetched {
  int column;
  SumOf<T> value;
};

// The place `at` of a row that ends at `last`, beyond all columns where there is none. Unsigned: `at` may pass the
// last of 2^31 - 1 places.
template <typename T>
__device__ __forceinline__ Fetched<T> fetch(const Product<T>& p, unsigned at, unsigned last) {
  if (at >= last) return {INT_MAX, 0};
  return {__ldg(p.columns + at), Stored<T>::number(p.values[at])};
}

// How many places the quarter with most has; places rise, so the lanes that have one are a quarter's first.
__device__ __forceinline__ int most_of_a_quarter(unsigned votes) {
  votes |= votes >> 16;
  votes |= votes >> 8;
  return __popc(votes & 0xff);
}

template <typename T, int sets>
__global__ void __launch_bounds__(slab_threads, 1) spmm_slabs(const Product<T> p, int slab) {
  using Sum = SumOf<T>;
  static_assert(sizeof(Sum) == 4 && sizeof(Pair<Sum>) == 8);
  constexpr int own = lane_examples<T>;
  unsigned char* held = dynamic_shared<unsigned char>();
  const int nothing = 2 * slab * line_bytes;  // a line of zeros: what is not kept meets no x, however infinite
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, quarter = lane / line_lanes,
            part = lane % line_lanes;
  auto* pairs = reinterpret_cast<Pair<Sum>*>(held + nothing + line_bytes) + (warp * quarters + quarter) * pair_room;
  const int64_t tile = blockIdx.x / unsigned(p.row_blocks);
  const int first = int(blockIdx.x % unsigned(p.row_blocks)) * sets * set_rows;
  const int own_row = first + warp * quarters + quarter;
  const unsigned char* lines = p.lines + tile * p.cols * line_bytes;

  const auto bring = [&](int from, int buffer) {
    const int granules = min(slab, p.cols - from) * line_lanes;
    for (int i = int(threadIdx.x); i < granules; i += slab_threads)
      __pipeline_memcpy_async(held + buffer * slab * line_bytes + i * granule_bytes,
                              lines + int64_t(from) * line_bytes + i * granule_bytes, granule_bytes);
    __pipeline_commit();
  };
  const auto last_of = [&](int set) {
    const int row = own_row + set * set_rows;
    return row < p.rows ? unsigned(__ldg(p.offsets + row + 1)) : 0;
  };

  unsigned at[sets];
  Sum sums[sets][own];
#pragma unroll
  for (int set = 0; set < sets; ++set) {
    const int row = own_row + set * set_rows;
    at[set] = row < p.rows ? unsigned(__ldg(p.offsets + row)) : 0;
#pragma unroll
    for (int i = 0; i < own; ++i) sums[set][i] = 0;
  }
  if (threadIdx.x < line_lanes)
    reinterpret_cast<uint4*>(held + nothing)[threadIdx.x] = make_uint4(0, 0, 0, 0);
  if (p.cols) bring(0, 0);
  Fetched<T> ahead = fetch(p, at[0] + part, last_of(0));
  int buffer = 0;
  for (int from = 0; from < p.cols; from += slab, buffer ^= 1) {
    __pipeline_wait_prior(0);
    __syncthreads();  // this slab is there for all, and nobody reads the one before any more
    if (from + slab < p.cols) bring(from + slab, buffer ^ 1);
    const int limit = min(from + slab, p.cols);
    const int shift = buffer * slab - from;
#pragma unroll
    for (int set = 0; set < sets; ++set) {
      const unsigned last = last_of(set);
      Fetched<T> now = ahead;
      const int after = (set + 1) % sets;
      if (sets > 1) ahead = fetch(p, at[after] + part, last_of(after));
      unsigned votes = 0;
      while (true) {
        const bool in = now.column < limit;
        votes = __ballot_sync(every_lane, in);
        const int steps = most_of_a_quarter(votes);
        if (steps == 0) break;
        pairs[part] = {in ? now.value : Sum(0), in ? (now.column + shift) * line_bytes : nothing};
        __syncwarp();
        for (int step = 0; step < steps; step += 2) {
          const uint4 two = *reinterpret_cast<const uint4*>(pairs + step);
          const auto line = reinterpret_cast<const uint4*>(held + part * granule_bytes + two.y);
          const auto next = reinterpret_cast<const uint4*>(held + part * granule_bytes + two.w);
          Sum x[own], z[own];
          Stored<T>::unpack(*line, x);
          Stored<T>::unpack(*next, z);
#pragma unroll
          for (int i = 0; i < own; ++i) sums[set][i] += __uint_as_float(two.x) * x[i];
#pragma unroll
          for (int i = 0; i < own; ++i) sums[set][i] += __uint_as_float(two.z) * z[i];
        }
        at[set] += unsigned(__popc(votes >> (quarter * line_lanes) & 0xff));
        __syncwarp();  // before the pairs are written again
        const bool full = (votes & 0x80808080u) != 0;
        if (!full) break;
        now = fetch(p, at[set] + part, last);
      }
      if (sets == 1) ahead = fetch(p, at[0] + part, last);
    }
  }

  __syncthreads();
  T* tile_of_y = reinterpret_cast<T*>(held);
  constexpr int rows = sets * set_rows, stride = held_stride<T, rows>;
#pragma unroll
  for (int set = 0; set < sets; ++set) {
    const int row = own_row + set * set_rows;
#pragma unroll
    for (int i = 0; i < own; ++i)
      if (row < p.rows) tile_of_y[(part * own + i) * stride + row - first] = finished(p, row, sums[set][i]);
  }
  __syncthreads();
  write_tile(p, tile_of_y, stride, tile, first, rows, slab_threads);
}

template <typename T>
__global__ void __launch_bounds__(gather_threads) spmm_gather(const Product<T> p) {
  using Sum = SumOf<T>;
  constexpr int own = lane_examples<T>, stride = held_stride<T, gather_rows>, at_once = 4;
  __shared__ T tile_of_y[line_examples<T> * stride];
  __shared__ Pair<Sum> all_pairs[gather_rows][pair_room];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, quarter = lane / line_lanes,
            part = lane % line_lanes;
  Pair<Sum>* pairs = all_pairs[warp * quarters + quarter];
  const int64_t tile = blockIdx.x / unsigned(p.row_blocks);
  const int first = int(blockIdx.x % unsigned(p.row_blocks)) * gather_rows;
  const int row = first + warp * quarters + quarter;
  const unsigned char* lines = p.lines + tile * p.cols * line_bytes + part * granule_bytes;

  unsigned at = row < p.rows ? unsigned(__ldg(p.offsets + row)) : 0;
  const unsigned last = row < p.rows ? unsigned(__ldg(p.offsets + row + 1)) : 0;
  Sum sums[own];
#pragma unroll
  for (int i = 0; i < own; ++i) sums[i] = 0;
  Fetched<T> now = fetch(p, at + part, last);
  while (true) {
    const bool in = now.column < INT_MAX;
    const int steps = most_of_a_quarter(__ballot_sync(every_lane, in));
    if (steps == 0) break;
    pairs[part] = {now.value, in ? now.column : -1};
    __syncwarp();
    at += chunk;
    now = fetch(p, at + part, last);
    for (int step = 0; step < steps; step += at_once) {
      Pair<Sum> some[at_once];
      uint4 words[at_once];
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        some[i] = pairs[step + i];
        words[i] = some[i].place < 0
                       ? make_uint4(0, 0, 0, 0)
                       : __ldg(reinterpret_cast<const uint4*>(lines + int64_t(some[i].place) * line_bytes));
      }
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        Sum x[own];
        Stored<T>::unpack(words[i], x);
#pragma unroll
        for (int j = 0; j < own; ++j) sums[j] += some[i].value * x[j];
      }
    }
    __syncwarp();  // before the pairs are written again
  }
#pragma unroll
  for (int i = 0; i < own; ++i)
    if (row < p.rows) tile_of_y[(part * own + i) * stride + row - first] = finished(p, row, sums[i]);
  __syncthreads();
  write_tile(p, tile_of_y, stride, tile, first, gather_rows, gather_threads);
}

template <typename T>
__global__ void __launch_bounds__(256) in_order(const T* values, const int32_t* order, int64_t nnz, T* ordered) {
  for (int64_t k = int64_t(blockIdx.x) * 256 + threadIdx.x; k < nnz; k += int64_t(gridDim.x) * 256)
    ordered[k] = values[order[k]];
}

struct Device {
  int multiprocessors, shared_limit;  // the limit in bytes, of one block
};

int64_t line_space(Number type, int64_t batch, int64_t features) {
  const int64_t examples = type == Number::f64 ? line_examples<double>
                           : type == Number::f32 ? line_examples<float>
                                                 : line_examples<__half>;
  return (batch + examples - 1) / examples * features * line_bytes;
}

template <typename T, int sets>
constexpr int64_t tile_bytes = int64_t(sizeof(T)) * line_examples<T> * held_stride<T, sets * set_rows>;

template <typename T, int sets>
const char* queue_slabs(Product<T> p, int64_t tiles, int shared_limit, cudaStream_t stream) {
  constexpr int rows = sets * set_rows;
  constexpr int64_t rest = line_bytes + int64_t(set_rows) * pair_room * sizeof(Pair<SumOf<T>>);
  const int fitting = int((shared_limit - rest) / (2 * line_bytes)) / slab_step * slab_step;
  const int needed = (p.cols + slab_step - 1) / slab_step * slab_step;
  const int slab = std::max(std::min({most_slab, fitting, needed}), 0);
  const int64_t shared = std::max(2 * int64_t(slab) * line_bytes + rest, tile_bytes<T, sets>);
  if (shared > shared_limit || (slab == 0 && p.cols)) return "the device has too little shared memory";
  p.row_blocks = (p.rows + rows - 1) / rows;
  if (tiles * p.row_blocks >= int64_t(1) << 31) return "batch and rows are too large for one grid";
  launch(spmm_slabs<T, sets>, unsigned(tiles * p.row_blocks), slab_threads, size_t(shared), stream, p,
         std::max(slab, slab_step));
  return nullptr;
}

template <typename T>
const char* queue_gather(Product<T> p, int64_t tiles, cudaStream_t stream) {
  p.row_blocks = (p.rows + gather_rows - 1) / gather_rows;
  if (tiles * p.row_blocks >= int64_t(1) << 31) return "batch and rows are too large for one grid";
  launch(spmm_gather<T>, unsigned(tiles * p.row_blocks), gather_threads, 0, stream, p);
  return nullptr;
}

template <typename T>
const char* queue(const T* x, int64_t batch, const Places& w, const T* values, const int32_t* order, const T* bias,
                  bool relu, T* y, unsigned char* workspace, Way way, const Device& device,
                  cudaStream_t stream) {
  const int64_t tiles = tiles_of<T>(batch);
  if (tiles == 0 || w.rows == 0) return nullptr;
  if (w.rows > most_features || w.cols > most_features) return "there are more than 2^31 - 4096 rows or columns";
  if (!queue_lines(x, batch, w.cols, workspace, stream)) return "the batch is too large for one grid";
  if (order && w.nnz) {
    T* ordered = reinterpret_cast<T*>(workspace + tiles * w.cols * line_bytes);
    const int64_t blocks = std::min<int64_t>((w.nnz + 255) / 256, 65536);
    launch(in_order<T>, unsigned(blocks), 256, 0, stream, values, order, w.nnz, ordered);
    values = ordered;
  }
  const Product<T> p = {workspace, batch, w.offsets, w.columns,     values, bias,
                        y,         int(w.rows), int(w.cols), 0, relu};
  const bool dense_enough = double(w.nnz) >= least_density * double(w.rows) * double(w.cols);
  if constexpr (sizeof(T) <= 4) {
    if (way == Way::slabs || (way == Way::automatic && dense_enough)) {
      // Many rows a block bring a slab fewer times; few give every multiprocessor a block. The bits are the same.
      constexpr int many = 64 / lane_examples<T>, few = many / 4;
      const int64_t blocks = tiles * ((w.rows + many * set_rows - 1) / (many * set_rows));
      const bool fits = tile_bytes<T, many> <= device.shared_limit;
      if (fits && blocks >= int64_t(enough_turns) * device.multiprocessors)
        return queue_slabs<T, many>(p, tiles, device.shared_limit, stream);
      return queue_slabs<T, few>(p, tiles, device.shared_limit, stream);
    }
  }
  return queue_gather<T>(p, tiles, stream);
}

}  // namespace

int64_t spmm_workspace(Number type, int64_t batch, const Places& w, bool ordered) {
  return line_space(type, batch, w.cols) + (ordered ? 8 * w.nnz : 0);
}

const char* spmm_cuda(Number type, const void* x, int64_t batch, const Places& w, const void* values,
                      const int32_t* order, const void* bias, bool relu, void* y, void* workspace, Way way,
                      int device, void* stream) {
  Device found = {};
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&found.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const auto on = [&](auto zero) {
    using T = decltype(zero);
    return queue<T>(static_cast<const T*>(x), batch, w, static_cast<const T*>(values), order,
                    static_cast<const T*>(bias), relu, static_cast<T*>(y), static_cast<unsigned char*>(workspace),
                    way, found, static_cast<cudaStream_t>(stream));
  };
  const char* refused = nullptr;
  switch (type) {
    case Number::f32: refused = on(float()); break;
    case Number::f64: refused = on(double()); break;
    case Number::f16: refused = on(__half()); break;
    case Number::bf16: refused = on(__nv_bfloat16()); break;
  }
  error = cudaGetLastError();
  return refused ? refused : error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace lotterykit
