// Moving chosen lanes of 8 to the front, which AVX2 has no instruction for.
#pragma once
#include <cstdint>

namespace lotterykit {

// Row m lists the set bits of m: the permutation that moves those lanes to the front.
struct CompressTable {
  alignas(32) uint8_t lane[256][8];
  CompressTable() {
    for (int m = 0; m < 256; ++m) {
      int n = 0;
      for (int bit = 0; bit < 8; ++bit)
        if (m >> bit & 1) lane[m][n++] = uint8_t(bit);
      while (n < 8) lane[m][n++] = 0;
    }
  }
};
inline const CompressTable compress_table;

}  // namespace lotterykit
