// CUDA's names for a C++ compiler, so that the kernels of csrc/cuda run on a CPU without a GPU or its toolkit.
//
// The threads of a block are fibers of one OS thread that change at barriers and warp collectives only, blocks run
// one after another (a block that waits for another waits for ever), and atomics are plain operations. What a GPU
// leaves undefined shows:
// - LOTTERYKIT_EMULATED_ORDER=<seed> runs threads and blocks in a random order: a missing barrier changes results;
// - shared memory is all ones (NaN) when a block begins, and of exactly the bytes asked for;
// - a collective whose lanes disagree, and a barrier that some never reach, end the process with what each awaits;
// - a copy by __pipeline_memcpy_async arrives when it is waited for, not before;
// - a launch that a GPU would refuse (threads, grid, shared memory) is refused; LOTTERYKIT_EMULATED_SHARED=<bytes>
//   is what a block may have of shared memory, 227 KiB without it.
// With -fsanitize=address all memory is watched; LOTTERYKIT_EMULATED_STATIC makes static shared memory ordinary
// variables, which it can watch, where else they are filled with ones.
#pragma once
#define LOTTERYKIT_CUDA_EMULATED 1

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#ifdef LOTTERYKIT_EMULATED_STATIC
#define __shared__ static
#else
#define __shared__ static thread_local  // all in one segment, which can be filled
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATED_VECTORS(type, scalar, bytes)                                                      \
  struct alignas(2 * bytes) type##2 { scalar x, y; };                                              \
  struct type##3 { scalar x, y, z; };                                                              \
  struct alignas(4 * bytes > 16 ? 16 : 4 * bytes) type##4 { scalar x, y, z, w; };                  \
  inline type##2 make_##type##2(scalar x, scalar y) { return {x, y}; }                             \
  inline type##3 make_##type##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                \
  inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float, 4)
EMULATED_VECTORS(double, double, 8)
EMULATED_VECTORS(int, int, 4)
EMULATED_VECTORS(uint, unsigned, 4)
EMULATED_VECTORS(ushort, unsigned short, 2)
EMULATED_VECTORS(uchar, unsigned char, 1)
EMULATED_VECTORS(longlong, long long, 8)
EMULATED_VECTORS(ulonglong, unsigned long long, 8)
#undef EMULATED_VECTORS

// Where the running thread stands.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

[[noreturn]] void fail(const char* format, ...);
void* dynamic_shared();
// Waits for all threads of the block that have not ended; returns for how many of them `vote` was true.
int barrier(bool vote);
// Waits for the lanes of `mask`, which must call the same `what`; returns their `bits` by lane, and rubbish for
// the others.
const uint64_t* collective(const char* what, unsigned mask, uint64_t bits);
void copy_later(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
void wait_copies(size_t prior);

enum class Launch { done, bad_configuration, bad_shared };
Launch run(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);
void allow_shared(const void* kernel, size_t bytes);
int attribute(int which);

inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}
template <typename T>
uint64_t bits_of(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename To, typename From>
To cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
template <typename T>
T at_lane(const uint64_t* seen, unsigned from) {
  T value;
  std::memcpy(&value, &seen[from], sizeof(T));
  return value;
}

}  // namespace emulator

// Barriers, fences and warp collectives.
inline void __syncthreads() { emulator::barrier(false); }
inline int __syncthreads_count(int vote) { return emulator::barrier(vote); }
inline int __syncthreads_or(int vote) { return emulator::barrier(vote) != 0; }
inline int __syncthreads_and(int vote) { return emulator::barrier(!vote) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { emulator::collective("__syncwarp", mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const unsigned lane = emulator::lane();
  const uint64_t* seen = emulator::collective("__shfl_sync", mask, emulator::bits_of(value));
  return emulator::at_lane<T>(seen, (lane & ~unsigned(width - 1)) | (unsigned(from) & unsigned(width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  const unsigned lane = emulator::lane(), from = lane ^ unsigned(with);
  const uint64_t* seen = emulator::collective("__shfl_xor_sync", mask, emulator::bits_of(value));
  return from / unsigned(width) > lane / unsigned(width) ? value : emulator::at_lane<T>(seen, from % 32);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulator::lane();
  const uint64_t* seen = emulator::collective("__shfl_down_sync", mask, emulator::bits_of(value));
  return lane % unsigned(width) + by >= unsigned(width) ? value : emulator::at_lane<T>(seen, lane + by);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const unsigned lane = emulator::lane();
  const uint64_t* seen = emulator::collective("__shfl_up_sync", mask, emulator::bits_of(value));
  return lane % unsigned(width) < by ? value : emulator::at_lane<T>(seen, lane - by);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
  const uint64_t* seen = emulator::collective("__ballot_sync", mask, vote != 0);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) && seen[lane]) votes |= 1u << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == mask; }
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t mine = emulator::bits_of(value);
  const uint64_t* seen = emulator::collective("__match_any_sync", mask, mine);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) && seen[lane] == mine) same |= 1u << lane;
  return same;
}
namespace emulator {
template <typename T, typename Join>
T reduced(const char* what, unsigned mask, T value, Join join) {
  const uint64_t* seen = collective(what, mask, bits_of(value));
  T total{};
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    total = first ? at_lane<T>(seen, lane) : join(total, at_lane<T>(seen, lane));
    first = false;
  }
  return total;
}
}  // namespace emulator
#define EMULATED_REDUCTION(name, type, join)                                              \
  inline type name(unsigned mask, type value) {                                           \
    return emulator::reduced(#name, mask, value, [](type a, type b) -> type { return join; }); \
  }
EMULATED_REDUCTION(__reduce_add_sync, unsigned, a + b)
EMULATED_REDUCTION(__reduce_add_sync, int, a + b)
EMULATED_REDUCTION(__reduce_min_sync, unsigned, a < b ? a : b)
EMULATED_REDUCTION(__reduce_min_sync, int, a < b ? a : b)
EMULATED_REDUCTION(__reduce_max_sync, unsigned, a > b ? a : b)
EMULATED_REDUCTION(__reduce_max_sync, int, a > b ? a : b)
EMULATED_REDUCTION(__reduce_or_sync, unsigned, a | b)
EMULATED_REDUCTION(__reduce_and_sync, unsigned, a & b)
#undef EMULATED_REDUCTION

// Atomics: each returns what stood there.
#define EMULATED_ATOMIC(name, join)                                                       \
  template <typename T>                                                                   \
  T name(T* at, std::common_type_t<T> b) {                                                \
    const T a = *at;                                                                      \
    *at = join;                                                                           \
    return a;                                                                             \
  }                                                                                       \
  template <typename T>                                                                   \
  T name##_block(T* at, std::common_type_t<T> b) { return name(at, b); }
EMULATED_ATOMIC(atomicAdd, T(a + b))
EMULATED_ATOMIC(atomicSub, T(a - b))
EMULATED_ATOMIC(atomicMin, (b < a ? b : a))
EMULATED_ATOMIC(atomicMax, (b > a ? b : a))
EMULATED_ATOMIC(atomicAnd, T(a & b))
EMULATED_ATOMIC(atomicOr, T(a | b))
EMULATED_ATOMIC(atomicXor, T(a ^ b))
EMULATED_ATOMIC(atomicExch, b)
#undef EMULATED_ATOMIC
template <typename T>
T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> wanted) {
  const T before = *at;
  if (before == expected) *at = wanted;
  return before;
}

// Loads and stores with cache hints, asynchronous copies.
template <typename T> T __ldg(const T* at) { return *at; }
template <typename T> T __ldcg(const T* at) { return *at; }
template <typename T> T __ldcs(const T* at) { return *at; }
template <typename T> T __ldlu(const T* at) { return *at; }
template <typename T> void __stcs(T* at, T value) { *at = value; }
template <typename T> void __stcg(T* at, T value) { *at = value; }
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  emulator::copy_later(to, from, bytes, zeros);
}
inline void __pipeline_commit() { emulator::commit_copies(); }
inline void __pipeline_wait_prior(size_t prior) { emulator::wait_copies(prior); }

// Bits and arithmetic.
inline unsigned __float_as_uint(float x) { return emulator::cast<unsigned>(x); }
inline int __float_as_int(float x) { return emulator::cast<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator::cast<float>(x); }
inline float __int_as_float(int x) { return emulator::cast<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::cast<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::cast<double>(x); }
inline double __hiloint2double(int high, int low) {
  return emulator::cast<double>(uint64_t(uint32_t(high)) << 32 | uint32_t(low));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return unsigned((uint64_t(high) << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return unsigned((uint64_t(high) << 32 | low) >> (by & 31));
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __frsqrt_rn(float a) { return 1 / std::sqrt(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline void sincospif(float x, float* s, float* c) {
  *s = float(std::sin(M_PI * double(x)));
  *c = float(std::cos(M_PI * double(x)));
}
inline void sincospi(double x, double* s, double* c) {
  *s = std::sin(M_PI * x);
  *c = std::cos(M_PI * x);
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return std::common_type_t<A, B>(b) < std::common_type_t<A, B>(a) ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return std::common_type_t<A, B>(a) < std::common_type_t<A, B>(b) ? b : a;
}

// Half precision: conversions, as the kernels compute in float32.
struct __half {
  _Float16 value;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline __half __ushort_as_half(unsigned short x) { return emulator::cast<__half>(x); }
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return emulator::cast<float>(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = emulator::cast<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// The runtime: one device, streams that have done all work when a call returns.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulator {
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
}  // namespace emulator

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::last_error;
  emulator::last_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaPeekAtLastError() { return emulator::last_error; }
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    default: return "invalid device ordinal";
  }
}
inline cudaError_t cudaSetDevice(int device) {
  return emulator::noted(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = emulator::attribute(int(which));
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute which, int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > emulator::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    return emulator::noted(cudaErrorInvalidValue);
  emulator::allow_shared(reinterpret_cast<const void*>(kernel), size_t(value));
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads, size_t shared) {
  *blocks = std::min(2048 / threads, shared ? int((size_t(228) << 10) / shared) : 32);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const auto how = emulator::run(reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim,
                                 config->dynamicSmemBytes, [&] { kernel(arguments...); });
  if (how == emulator::Launch::bad_shared) return emulator::noted(cudaErrorInvalidValue);
  return emulator::noted(how == emulator::Launch::done ? cudaSuccess : cudaErrorInvalidConfiguration);
}
