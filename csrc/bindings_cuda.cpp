// The only pybind11 file of lotterykit._cuda. Python passes device addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/topk_mask.h"

#ifndef LOTTERYKIT_CUDA_CODE
#error "setup.py defines LOTTERYKIT_CUDA_CODE, the comma-separated architectures that it gives to nvcc"
#endif

namespace py = pybind11;
using namespace lotterykit;

namespace {

void bound_topk_mask(uintptr_t table, int64_t count, int64_t chunks, bool is_double, int64_t k, uint64_t seed,
                     uintptr_t workspace, int device, uintptr_t stream) {
  if (count < 0 || chunks < 0 || k < 0) throw std::invalid_argument("topk_mask: negative count, chunks or k");
  py::gil_scoped_release release;
  const char* error = topk_mask_cuda(reinterpret_cast<const DeviceEntries*>(table), count, chunks, is_double, k,
                                     seed, reinterpret_cast<TopkWorkspace*>(workspace), device,
                                     reinterpret_cast<void*>(stream));
  if (error) throw std::runtime_error(std::string("topk_mask: ") + error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Native CUDA kernels of lotterykit; use lotterykit.ops, which validates.";
  // Machine code ("sm_90a") and PTX ("compute_100") inside, for lotterykit.ops.dispatch.
  m.attr("CODE") = py::str(LOTTERYKIT_CUDA_CODE).attr("split")(",");
  m.attr("CHUNK") = topk_chunk;
  m.attr("TOPK_WORKSPACE_BYTES") = sizeof(TopkWorkspace);
  m.def("topk_mask", &bound_topk_mask, py::arg("table"), py::arg("count"), py::arg("chunks"), py::arg("is_double"),
        py::arg("k"), py::arg("seed"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
}
