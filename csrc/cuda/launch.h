// How kernels are launched and reach dynamic shared memory. CUDA's own syntax for both stands here alone: all
// else in these sources is C++ with CUDA's names, which tests/native/cuda_emulator.h gives on a CPU.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>

namespace lotterykit {

constexpr unsigned every_lane = 0xffffffffu;

// What a block may take of shared memory before it must ask for more.
constexpr size_t usual_shared = 48 << 10;

// Queues `kernel` on `stream`; `cudaGetLastError` tells whether it could be.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
            Arguments... arguments) {
  if (shared > usual_shared)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef LOTTERYKIT_CUDA_EMULATED
  return static_cast<T*>(emulator::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#endif
}

}  // namespace lotterykit
