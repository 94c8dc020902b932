// Sparse products: y = x W^T with W in CSR, and (g^T x) at the kept places of W.
#pragma once
#include <cstdint>

#include "runtime.h"

namespace lotterykit {

// The kept places of a matrix [rows, cols] in CSR order. Row r's places in column block b are
// columns[segments[b * stride + r]] up to columns[segments[(b + 1) * stride + r]], rising; a block's columns of
// a tile stay in the first cache. One block: segments are the row offsets and stride is 1; else stride is rows.
// Borrowed; `lotterykit.ops.formats.CSR` has checked every index.
struct Structure {
  const int32_t* columns;
  const int32_t* segments;
  int64_t blocks, stride, rows, cols;

  int32_t first(int64_t block, int64_t row) const { return segments[block * stride + row]; }
  int32_t last(int64_t block, int64_t row) const { return segments[(block + 1) * stride + row]; }
  int32_t nnz() const { return rows == 0 ? 0 : last(blocks - 1, rows - 1); }
};

// What a call runs with. Results depend on `isa` (rounding), never on `threads`.
struct Run {
  int threads;
  Isa isa;
  Watch& watch;
};

// y [batch, rows] = act(x [batch, cols] W^T + bias), all row-major and contiguous. `values` [nnz] in CSR order,
// or, with `order` [nnz], value k of the structure is values[order[k]]. bias [rows] or null. False: stopped.
template <typename T>
bool spmm(const T* x, int64_t batch, const Structure& w, const T* values, const int32_t* order, const T* bias,
          bool relu, T* y, const Run& run);

// dvalues [nnz] = sum over the batch of g [batch, rows] times x [batch, cols] at each kept place.
template <typename T>
bool sddmm(const T* g, const T* x, int64_t batch, const Structure& w, T* dvalues, const Run& run);

// The backward pass of spmm in one call, with g moved into tiles once. `gate` is spmm's output where it had a
// ReLU, else null. `w` is W's structure, `transposed` that of its transpose, whose value k is values[order[k]].
// dx [batch, cols], dvalues [nnz] and dbias [rows] are computed where they are not null.
template <typename T>
struct Gradients {
  T *dx, *dvalues, *dbias;
};
template <typename T>
bool spmm_backward(const T* g, const T* gate, const T* x, int64_t batch, const Structure& w,
                   const Structure& transposed, const T* values, const int32_t* order, const Gradients<T>& out,
                   const Run& run);

}  // namespace lotterykit
