// The order of tied entries, shared by the CPU and the CUDA selection so that both keep the same entries.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define LOTTERYKIT_ANYWHERE __host__ __device__ __forceinline__
#else
#define LOTTERYKIT_ANYWHERE inline
#endif

namespace lotterykit {

struct TieSeed {
  uint32_t first, second;
};

// Spreads a seed over two words (splitmix64, Steele et al. 2014).
inline TieSeed tie_seed(uint64_t seed) {
  uint64_t z = seed + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return {uint32_t(z), uint32_t(z >> 32)};
}

// A bijection of 32 bits for every seed: xor, odd multiplication and xor-shift all invert (constants of
// lowbias32, Wellons 2018).
LOTTERYKIT_ANYWHERE uint32_t tie_rank(uint32_t position, TieSeed seed) {
  uint32_t x = position ^ seed.first;
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x ^= seed.second;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

}  // namespace lotterykit
