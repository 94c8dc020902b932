// Weights kept by a threshold on their scores, for edge-popup and Gem-Miner: from scores to bits, from bits to
// the kept weights, dense or in CSR.
#pragma once
#include <cstdint>

#include "../tie_order.h"
#include "spmm.h"

namespace lotterykit {

// A weight is kept where its score, or with `absolute` the magnitude of its score, lies above `threshold`, or
// equals it and the tie rank of its position is at most `rank`; `position` is that of the first score, counted
// over all tensors that are ranked together. A NaN is never kept.
template <typename T>
struct Cut {
  T threshold;
  int64_t rank;  // in [-1, 2^32)
  bool absolute;
  TieSeed seed;
  uint32_t position;
};

inline int64_t bytes_of(int64_t cols) { return (cols + 7) / 8; }

// bits [rows][bytes_of(cols)] of scores [rows][cols]: bit c % 8 of byte c / 8, spare bits 0; counts [rows], the
// kept entries of each row. False: stopped.
template <typename T>
bool kept_bits(const T* scores, int64_t rows, int64_t cols, const Cut<T>& cut, uint8_t* bits, int64_t* counts,
               const Run& run);

// out [rows][cols] = weight where its bit is set, else 0.
template <typename T>
bool expand_bits(const uint8_t* bits, const T* weight, int64_t rows, int64_t cols, T* out, const Run& run);

// columns and values [nnz] of the kept weights, row by row; offsets [rows + 1] are those of the rows.
template <typename T>
bool compress_bits(const uint8_t* bits, const T* weight, int64_t rows, int64_t cols, const int32_t* offsets,
                   int32_t* columns, T* values, const Run& run);

// The transpose of a structure: its offsets [cols + 1], rows [nnz], and the place order[k] of its value k.
void transpose_structure(const int32_t* offsets, const int32_t* columns, int64_t rows, int64_t cols,
                         int32_t* column_offsets, int32_t* of_row, int32_t* order);

// g [count] *= weight, and the sign of the score where `scores` is not null: the straight-through gradient of the
// scores from that of the effective weights.
template <typename T>
bool straight_through(T* g, const T* weight, const T* scores, int64_t count, const Run& run);

}  // namespace lotterykit
