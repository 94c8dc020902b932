// y = act(x W^T + b) on a CUDA device, with W in CSR.
#pragma once
#include <cstdint>

namespace lotterykit {

enum class Number { f32, f64, f16, bf16 };

// The kept places of a matrix [rows, cols], row by row: row r's are columns[offsets[r]] up to
// columns[offsets[r + 1]], rising. Device pointers, valid until the stream has run the work; all indices checked.
struct Places {
  const int32_t* offsets;  // [rows + 1]
  const int32_t* columns;  // [nnz]
  int64_t rows, cols, nnz;
};

enum class Way { automatic, slabs, gather };

// Bytes of device memory, aligned to 16, that spmm_cuda works in.
int64_t spmm_workspace(Number type, int64_t batch, const Places& w, bool ordered);

// y [batch, rows] = act(x [batch, cols] W^T + bias), row-major. `values` [nnz] in CSR order or, with `order` [nnz],
// value k of the structure is values[order[k]]. bias [rows] or null. Half precision is summed in float32. Bitwise
// the same in every run of one `way`. Queues on `stream` (a cudaStream_t) of `device` and returns at once: null, or
// the text of an error. Leaves `device` current on the calling thread, as topk_mask_cuda does.
const char* spmm_cuda(Number type, const void* x, int64_t batch, const Places& w, const void* values,
                      const int32_t* order, const void* bias, bool relu, void* y, void* workspace, Way way,
                      int device, void* stream);

}  // namespace lotterykit
