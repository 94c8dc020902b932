// What the sparse products share: how examples lie in device memory while they are multiplied.
//
// A matrix [batch, features] is first moved into lines of 128 bytes, [tile][feature][examples of a tile]: the
// numbers that one kept weight meets stand together, so that eight lanes read them with 16 bytes each, without a
// bank conflict from shared memory and as one whole line from L2. A quarter of a warp works on one row of W; the
// four quarters of a warp on four rows.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.h"

namespace lotterykit {

constexpr int line_bytes = 128, granule_bytes = 16, line_lanes = line_bytes / granule_bytes;
constexpr int quarters = 32 / line_lanes;

// How numbers of type T are stored, and summed.
template <typename T>
struct Stored;
template <>
struct Stored<float> {
  using Sum = float;
  static __device__ __forceinline__ float number(float x) { return x; }
  static __device__ __forceinline__ float rounded(float x) { return x; }
  static __device__ __forceinline__ void unpack(uint4 w, float* x) {
    x[0] = __uint_as_float(w.x), x[1] = __uint_as_float(w.y);
    x[2] = __uint_as_float(w.z), x[3] = __uint_as_float(w.w);
  }
};
template <>
struct Stored<double> {
  using Sum = double;
  static __device__ __forceinline__ double number(double x) { return x; }
  static __device__ __forceinline__ double rounded(double x) { return x; }
  static __device__ __forceinline__ void unpack(uint4 w, double* x) {
    x[0] = __hiloint2double(int(w.y), int(w.x)), x[1] = __hiloint2double(int(w.w), int(w.z));
  }
};
template <>
struct Stored<__half> {
  using Sum = float;
  static __device__ __forceinline__ float number(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half rounded(float x) { return __float2half_rn(x); }
  static __device__ __forceinline__ void unpack(uint32_t w, float* x) {
    x[0] = __half2float(__ushort_as_half((unsigned short)(w & 0xffff)));
    x[1] = __half2float(__ushort_as_half((unsigned short)(w >> 16)));
  }
  static __device__ __forceinline__ void unpack(uint4 w, float* x) {
    unpack(w.x, x), unpack(w.y, x + 2), unpack(w.z, x + 4), unpack(w.w, x + 6);
  }
};
template <>
struct Stored<__nv_bfloat16> {
  using Sum = float;
  static __device__ __forceinline__ float number(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 rounded(float x) { return __float2bfloat16_rn(x); }
  static __device__ __forceinline__ void unpack(uint32_t w, float* x) {
    x[0] = __uint_as_float(w << 16);
    x[1] = __uint_as_float(w & 0xffff0000u);
  }
  static __device__ __forceinline__ void unpack(uint4 w, float* x) {
    unpack(w.x, x), unpack(w.y, x + 2), unpack(w.z, x + 4), unpack(w.w, x + 6);
  }
};

template <typename T>
using SumOf = typename Stored<T>::Sum;

template <typename T>
constexpr int line_examples = line_bytes / int(sizeof(T));
template <typename T>
constexpr int lane_examples = granule_bytes / int(sizeof(T));

// Of rows or columns: a block's last may be counted past the matrix in an int.
constexpr int64_t most_features = (int64_t(1) << 31) - 4096;

template <typename T>
int64_t tiles_of(int64_t batch) {
  return (batch + line_examples<T> - 1) / line_examples<T>;
}

constexpr int tiling_threads = 256, tiling_features = 64;

// x [batch, features] into lines; examples past the batch are 0. One block: one tile of tiling_features features.
template <typename T>
__global__ void __launch_bounds__(tiling_threads) into_lines(const T* x, int64_t batch, int features, int parts,
                                                             uint4* lines) {
  constexpr int examples = line_examples<T>, own = lane_examples<T>;
  constexpr int pad = sizeof(T) == 2 ? 2 : 1;
  __shared__ T held[examples][tiling_features + pad];
  const int64_t tile = blockIdx.x / unsigned(parts);
  const int first = int(blockIdx.x % unsigned(parts)) * tiling_features;
  constexpr int rows_at_once = tiling_threads / tiling_features;
  const int column = int(threadIdx.x) % tiling_features, row = int(threadIdx.x) / tiling_features;
#pragma unroll
  for (int e = 0; e < examples; e += rows_at_once) {
    const int64_t example = tile * examples + e + row;
    const bool in = example < batch && first + column < features;
    held[e + row][column] = in ? x[example * features + first + column] : Stored<T>::rounded(0);
  }
  __syncthreads();
  const int part = int(threadIdx.x) % line_lanes;
  for (int f = int(threadIdx.x) / line_lanes; f < tiling_features; f += tiling_threads / line_lanes) {
    if (first + f >= features) return;
    union {
      uint4 words;
      T numbers[own];
    } granule = {};
#pragma unroll
    for (int i = 0; i < own; ++i) granule.numbers[i] = held[part * own + i][f];
    lines[(tile * features + first + f) * line_lanes + part] = granule.words;
  }
}

// Queues into_lines; false where a grid cannot be so large.
template <typename T>
bool queue_lines(const T* x, int64_t batch, int64_t features, void* lines, cudaStream_t stream) {
  const int64_t parts = (features + tiling_features - 1) / tiling_features, blocks = tiles_of<T>(batch) * parts;
  if (blocks >= int64_t(1) << 31) return false;
  if (blocks)
    launch(into_lines<T>, unsigned(blocks), tiling_threads, 0, stream, x, batch, int(features), int(parts),
           static_cast<uint4*>(lines));
  return true;
}

}  // namespace lotterykit
