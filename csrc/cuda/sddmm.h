// The sum over the batch of g x at the kept places of W, on a CUDA device.
#pragma once
#include "spmm.h"

namespace lotterykit {

// Bytes of device memory, aligned to 16, that sddmm_cuda works in.
int64_t sddmm_workspace(Number type, int64_t batch, const Places& w);

// dvalues [nnz] = sum over the batch of g [batch, rows] times x [batch, cols] at each kept place; both row-major.
// Half precision is summed in float32. All else as spmm_cuda.
const char* sddmm_cuda(Number type, const void* g, const void* x, int64_t batch, const Places& w, void* dvalues,
                       void* workspace, Way way, int device, void* stream);

}  // namespace lotterykit
