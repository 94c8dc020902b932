// A quarter of a warp holds its row's g of one tile in registers and meets the row's places eight at a time; eight
// lanes' shares of eight sums become the sum of one place a lane by seven exchanges. `slabs` bring x by slabs of
// columns into shared memory, the next tile's on its way; `gather` reads x's lines from L2. The batch is cut into
// parts, so that there are blocks enough, whose sums are added up in order at the end.
#include "sddmm.h"

#include <algorithm>

#include <cuda_pipeline_primitives.h>

#include "lines.h"

namespace lotterykit {
namespace {

constexpr int slab_warps = 16, slab_threads = 32 * slab_warps, set_rows = slab_warps * quarters;
constexpr int gather_warps = 8, gather_threads = 32 * gather_warps, gather_rows = gather_warps * quarters;
constexpr int chunk = line_lanes;      // places of a row that a quarter takes up at once, one a lane
constexpr int place_room = chunk + 4;  // so that the four quarters of a warp read from different banks

// None of these is measured yet; each has a reason.
constexpr double least_density = 0.003;  // of slabs: below, a row meets two columns of a slab or fewer
constexpr int most_slab = 768;           // columns: two slabs and the rest fit into 227 KiB
constexpr int slab_step = 64;
constexpr int slab_rows = 512;  // of a block: the more, the fewer times x is brought
constexpr int64_t most_parts = 16;
// An H200's, and assumed of every device, so that all add the same parts in the same order.
constexpr int64_t multiprocessors = 132;

template <typename T>
struct Sampled {
  const unsigned char *g_lines, *x_lines;
  const int32_t *offsets, *columns;
  SumOf<T>* sums;  // [parts][nnz]
  int64_t nnz, tiles, tiles_a_part;
  int rows, cols, row_blocks;
};

// The sum over the quarter's lanes of shares[i], in lane i.
template <typename Sum>
__device__ __forceinline__ Sum sum_of_own(Sum (&shares)[chunk], int part) {
#pragma unroll
  for (int half = chunk / 2; half; half /= 2) {
    const bool upper = (part & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const Sum kept = upper ? shares[i + half] : shares[i], given = upper ? shares[i] : shares[i + half];
      shares[i] = kept + __shfl_xor_sync(every_lane, given, half);
    }
  }
  return shares[0];
}

// The most that a quarter of the warp has.
__device__ __forceinline__ unsigned most_of_quarters(unsigned count) {
  count = max(count, __shfl_xor_sync(every_lane, count, line_lanes));
  return max(count, __shfl_xor_sync(every_lane, count, 2 * line_lanes));
}

// The first of a row's places [first, last) whose column is `column` or more.
__device__ __forceinline__ unsigned first_from(const int32_t* columns, unsigned first, unsigned last, int column) {
  while (first < last) {
    const unsigned middle = first + (last - first) / 2;
    if (columns[middle] < column) first = middle + 1;
    else last = middle;
  }
  return first;
}

template <typename T>
__global__ void __launch_bounds__(slab_threads, 1) sddmm_slabs(const Sampled<T> p, int slab) {
  using Sum = SumOf<T>;
  constexpr int own = lane_examples<T>;
  unsigned char* held = dynamic_shared<unsigned char>();
  auto* range = reinterpret_cast<uint2*>(held + 2 * slab * line_bytes);  // [slab_rows]: the places in this slab
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, quarter = lane / line_lanes,
            part = lane % line_lanes;
  int* places = reinterpret_cast<int*>(range + slab_rows) + (warp * quarters + quarter) * place_room;
  const int first_row = int(blockIdx.x % unsigned(p.row_blocks)) * slab_rows;
  const int from = int(blockIdx.x / unsigned(p.row_blocks)) * slab, until = min(from + slab, p.cols);
  const int64_t first_tile = blockIdx.y * p.tiles_a_part, last_tile = min(first_tile + p.tiles_a_part, p.tiles);
  Sum* sums = p.sums + blockIdx.y * p.nnz;

  for (int i = int(threadIdx.x); i < slab_rows; i += slab_threads) {
    const int row = first_row + i;
    uint2 found = make_uint2(0, 0);
    if (row < p.rows) {
      const unsigned begin = unsigned(p.offsets[row]), end = unsigned(p.offsets[row + 1]);
      found.x = first_from(p.columns, begin, end, from);
      found.y = first_from(p.columns, found.x, end, until);
    }
    range[i] = found;
  }
  const auto bring = [&](int64_t tile, int buffer) {
    const unsigned char* lines = p.x_lines + (tile * p.cols + from) * line_bytes;
    for (int i = int(threadIdx.x); i < (until - from) * line_lanes; i += slab_threads)
      __pipeline_memcpy_async(held + buffer * slab * line_bytes + i * granule_bytes, lines + i * granule_bytes,
                              granule_bytes);
    __pipeline_commit();
  };
  bring(first_tile, 0);
  int buffer = 0;
  for (int64_t tile = first_tile; tile < last_tile; ++tile, buffer ^= 1) {
    __pipeline_wait_prior(0);
    __syncthreads();  // this tile's slab and the ranges are there, and nobody reads the slab before any more
    if (tile + 1 < last_tile) bring(tile + 1, buffer ^ 1);
    const unsigned char* lines = held + buffer * slab * line_bytes + part * granule_bytes;
    for (int set = 0; set < slab_rows / set_rows; ++set) {
      const int own_row = set * set_rows + warp * quarters + quarter;
      const uint2 mine = range[own_row];
      const unsigned most = most_of_quarters(mine.y - mine.x);
      if (most == 0) continue;
      Sum g[own];
#pragma unroll
      for (int i = 0; i < own; ++i) g[i] = 0;
      if (mine.x < mine.y)
        Stored<T>::unpack(__ldg(reinterpret_cast<const uint4*>(
                              p.g_lines + (tile * p.rows + first_row + own_row) * line_bytes) + part), g);
      for (unsigned done = 0; done < most; done += chunk) {
        const unsigned k = mine.x + done + unsigned(part);
        const bool in = done + unsigned(part) < mine.y - mine.x;
        const Sum before = in && tile > first_tile ? sums[k] : Sum(0);
        places[part] = in ? (__ldg(p.columns + k) - from) * line_bytes : 0;
        __syncwarp();
        Sum shares[chunk];
#pragma unroll
        for (int i = 0; i < chunk; ++i) {
          shares[i] = 0;
          if (done + unsigned(i) >= most) continue;
          Sum x[own];
          Stored<T>::unpack(*reinterpret_cast<const uint4*>(lines + places[i]), x);
#pragma unroll
          for (int j = 0; j < own; ++j) shares[i] += g[j] * x[j];
        }
        const Sum sum = sum_of_own(shares, part);
        if (in) sums[k] = before + sum;
        __syncwarp();  // before the places are written again
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(gather_threads) sddmm_gather(const Sampled<T> p) {
  using Sum = SumOf<T>;
  constexpr int own = lane_examples<T>;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, quarter = lane / line_lanes,
            part = lane % line_lanes;
  const int row = int(blockIdx.x) * gather_rows + warp * quarters + quarter;
  const unsigned first = row < p.rows ? unsigned(p.offsets[row]) : 0,
                 count = row < p.rows ? unsigned(p.offsets[row + 1]) - first : 0;
  const unsigned most = most_of_quarters(count);
  const int64_t first_tile = blockIdx.y * p.tiles_a_part, last_tile = min(first_tile + p.tiles_a_part, p.tiles);
  for (unsigned done = 0; done < most; done += chunk) {
    const unsigned k = first + done + unsigned(part);
    const bool in = done + unsigned(part) < count;
    const int column = in ? __ldg(p.columns + k) : -1;
    int columns[chunk];
#pragma unroll
    for (int i = 0; i < chunk; ++i) columns[i] = __shfl_sync(every_lane, column, i, line_lanes);
    Sum shares[chunk];
#pragma unroll
    for (int i = 0; i < chunk; ++i) shares[i] = 0;
    if (done < count) {
      for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        Sum g[own];
        Stored<T>::unpack(
            __ldg(reinterpret_cast<const uint4*>(p.g_lines + (tile * p.rows + row) * line_bytes) + part), g);
        const auto lines = reinterpret_cast<const uint4*>(p.x_lines + tile * p.cols * line_bytes) + part;
#pragma unroll
        for (int i = 0; i < chunk; ++i) {
          if (columns[i] < 0) continue;
          Sum x[own];
          Stored<T>::unpack(__ldg(lines + int64_t(columns[i]) * line_lanes), x);
#pragma unroll
          for (int j = 0; j < own; ++j) shares[i] += g[j] * x[j];
        }
      }
    }
    const Sum sum = sum_of_own(shares, part);
    if (in) p.sums[blockIdx.y * p.nnz + k] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(256) add_parts(const SumOf<T>* sums, int64_t nnz, int parts, T* dvalues) {
  for (int64_t k = int64_t(blockIdx.x) * 256 + threadIdx.x; k < nnz; k += int64_t(gridDim.x) * 256) {
    SumOf<T> total = 0;
    for (int part = 0; part < parts; ++part) total += sums[part * nnz + k];
    dvalues[k] = Stored<T>::rounded(total);
  }
}

// How many tiles each part of the batch has, so that the blocks' last turn on the device is as full as can be.
int64_t best_tiles_a_part(int64_t tiles, int64_t blocks) {
  int64_t best = tiles, least = ((blocks + multiprocessors - 1) / multiprocessors) * tiles;
  for (int64_t parts = 2; parts <= std::min(most_parts, tiles); ++parts) {
    const int64_t each = (tiles + parts - 1) / parts;
    const int64_t turns = (blocks * ((tiles + each - 1) / each) + multiprocessors - 1) / multiprocessors;
    if (turns * each < least) best = each, least = turns * each;
  }
  return best;
}

template <typename T>
int64_t lines_space(int64_t batch, int64_t features) {
  return tiles_of<T>(batch) * features * line_bytes;
}

template <typename T>
const char* queue(const T* g, const T* x, int64_t batch, const Places& w, T* dvalues, unsigned char* workspace,
                  Way way, int shared_limit, cudaStream_t stream) {
  if (w.nnz == 0) return nullptr;
  if (w.rows > most_features || w.cols > most_features) return "there are more than 2^31 - 4096 rows or columns";
  unsigned char* x_lines = workspace + lines_space<T>(batch, w.rows);
  auto* sums = reinterpret_cast<SumOf<T>*>(x_lines + lines_space<T>(batch, w.cols));
  if (!queue_lines(g, batch, w.rows, workspace, stream) || !queue_lines(x, batch, w.cols, x_lines, stream))
    return "the batch is too large for one grid";
  Sampled<T> p = {workspace, x_lines, w.offsets, w.columns, sums, w.nnz, tiles_of<T>(batch), 0, int(w.rows),
                  int(w.cols), 0};
  constexpr int64_t rest = slab_rows * sizeof(uint2) + set_rows * place_room * sizeof(int);
  const int fitting = int((shared_limit - rest) / (2 * line_bytes)) / slab_step * slab_step;
  const int slab = std::min({most_slab, fitting, int(w.cols + slab_step - 1) / slab_step * slab_step});
  const bool dense_enough = double(w.nnz) >= least_density * double(w.rows) * double(w.cols);
  const bool slabs = sizeof(T) <= 4 && (way == Way::slabs || (way == Way::automatic && dense_enough));
  if (slabs && slab <= 0) return "the device has too little shared memory";
  p.row_blocks = int((w.rows + (slabs ? slab_rows : gather_rows) - 1) / (slabs ? slab_rows : gather_rows));
  const int64_t blocks = slabs ? p.row_blocks * ((w.cols + slab - 1) / slab) : p.row_blocks;
  if (blocks >= int64_t(1) << 31) return "rows and columns are too large for one grid";
  p.tiles_a_part = best_tiles_a_part(p.tiles, blocks);
  const int64_t parts = p.tiles ? (p.tiles + p.tiles_a_part - 1) / p.tiles_a_part : 0;
  const dim3 grid{unsigned(blocks), unsigned(parts)};
  if (parts && !slabs) launch(sddmm_gather<T>, grid, gather_threads, 0, stream, p);
  if constexpr (sizeof(T) <= 4)
    if (parts && slabs)
      launch(sddmm_slabs<T>, grid, slab_threads, size_t(2 * int64_t(slab) * line_bytes + rest), stream, p, slab);
  const int64_t adding = std::min<int64_t>((w.nnz + 255) / 256, 65536);
  launch(add_parts<T>, unsigned(adding), 256, 0, stream, sums, w.nnz, int(parts), dvalues);
  return nullptr;
}

template <typename T>
int64_t space(int64_t batch, const Places& w) {
  return lines_space<T>(batch, w.rows) + lines_space<T>(batch, w.cols) +
         most_parts * w.nnz * int64_t(sizeof(SumOf<T>));
}

}  // namespace

int64_t sddmm_workspace(Number type, int64_t batch, const Places& w) {
  switch (type) {
    case Number::f32: return space<float>(batch, w);
    case Number::f64: return space<double>(batch, w);
    default: return space<__half>(batch, w);
  }
}

const char* sddmm_cuda(Number type, const void* g, const void* x, int64_t batch, const Places& w, void* dvalues,
                       void* workspace, Way way, int device, void* stream) {
  int shared_limit = 0;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const auto on = [&](auto zero) {
    using T = decltype(zero);
    return queue<T>(static_cast<const T*>(g), static_cast<const T*>(x), batch, w, static_cast<T*>(dvalues),
                    static_cast<unsigned char*>(workspace), way, shared_limit, static_cast<cudaStream_t>(stream));
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
