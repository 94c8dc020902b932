// Kernels with mistakes, each of which cuda_emulator.h must show: `emulator_cases <case>`.
#include <cstdio>
#include <cstring>

#include "../../csrc/cuda/launch.h"

namespace {

using namespace lotterykit;

// Reverses the block's numbers; without the barrier, the numbers of threads that have not run yet are missing.
template <bool barrier>
__global__ void reverse(int* numbers) {
  __shared__ int held[64];
  held[threadIdx.x] = numbers[threadIdx.x];
  if (barrier) __syncthreads();
  numbers[threadIdx.x] = held[63 - threadIdx.x];
}

__global__ void read_unwritten(float* y) {
  __shared__ float held[64];
  y[threadIdx.x] = held[threadIdx.x] + dynamic_shared<float>()[threadIdx.x];
}

__global__ void skip_a_barrier() {
  if (threadIdx.x % 2) __syncthreads();
  else __syncwarp();
}

__global__ void disagree() {
  if (threadIdx.x < 16) __shfl_xor_sync(every_lane, 1, 1);
  else __ballot_sync(every_lane, 1);
}

__global__ void leave_the_mask(unsigned mask) { __syncwarp(mask); }

__global__ void write_past_shared() { dynamic_shared<float>()[threadIdx.x + 1] = 1; }

__global__ void write_past_static(int at) {
  __shared__ volatile int held[64];
  held[at] = 1;
}

__global__ void sum(int* total) {
  int own = int(threadIdx.x);
  for (int step = 16; step; step /= 2) own += __shfl_down_sync(every_lane, own, unsigned(step));
  if (threadIdx.x % 32 == 0) atomicAdd(total, own);
  if (__syncthreads_count(threadIdx.x % 3 == 0) != 22) *total = -1;
}

int failed(const char* what) {
  std::printf("%s\n", what);
  return 1;
}

int say(cudaError_t error) { return failed(cudaGetErrorString(error)); }

int run(const char* name) {
  int numbers[64];
  float y[64];
  for (int i = 0; i < 64; ++i) numbers[i] = i;
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("right") || is("no-barrier")) {
    if (is("right")) launch(reverse<true>, 1, 64, 0, nullptr, numbers);
    else launch(reverse<false>, 1, 64, 0, nullptr, numbers);
    int total = 0;
    launch(sum, 1, 64, 0, nullptr, &total);
    if (total != 63 * 32) return failed("the sum is wrong");
    for (int i = 0; i < 64; ++i)
      if (numbers[i] != 63 - i) return failed("the numbers are wrong");
    return failed("right") - 1;
  }
  if (is("unwritten")) {
    launch(read_unwritten, 1, 64, 64 * sizeof(float), nullptr, y);
    return failed(y[0] != y[0] && y[63] != y[63] ? "NaN" : "numbers") - 1;
  }
  if (is("barrier")) launch(skip_a_barrier, 1, 32, 0, nullptr);
  if (is("disagree")) launch(disagree, 1, 32, 0, nullptr);
  if (is("mask")) launch(leave_the_mask, 1, 32, 0, nullptr, 1u);
  if (is("lanes")) launch(leave_the_mask, 1, 31, 0, nullptr, every_lane);
  if (is("past-shared")) launch(write_past_shared, 1, 64, 64 * sizeof(float), nullptr);
  if (is("past-static")) launch(write_past_static, 1, 64, 0, nullptr, 64);
  if (is("threads")) launch(sum, 1, 1025, 0, nullptr, numbers);
  if (is("grid")) launch(sum, dim3(1, 65536), 64, 0, nullptr, numbers);
  if (is("shared")) launch(sum, 1, 64, 228 << 10, nullptr, numbers);
  return say(cudaGetLastError());
}

}  // namespace

int main(int count, char** words) { return count == 2 ? run(words[1]) : 2; }
