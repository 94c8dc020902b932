// The only pybind11 file of lotterykit._cuda. Python passes device addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "cuda/sddmm.h"
#include "cuda/spmm.h"
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

template <typename Value>
Value named(const char* what, const std::string& name, std::initializer_list<std::pair<const char*, Value>> values) {
  for (const auto& [known, value] : values)
    if (name == known) return value;
  throw std::invalid_argument(std::string(what) + " '" + name + "' is unknown");
}

Number number_of(const std::string& name) {
  return named<Number>("dtype", name, {{"float32", Number::f32}, {"float64", Number::f64}, {"float16", Number::f16},
                                       {"bfloat16", Number::bf16}});
}

Way way_of(const std::string& name) {
  return named<Way>("way", name, {{"auto", Way::automatic}, {"slabs", Way::slabs}, {"gather", Way::gather}});
}

// (offsets, columns, rows, cols, nnz): addresses, then sizes; see Places.
using BoundPlaces = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;

Places places_of(const BoundPlaces& bound) {
  const auto [offsets, columns, rows, cols, nnz] = bound;
  const int64_t most = (int64_t(1) << 31) - 1;
  if (rows < 0 || cols < 0 || nnz < 0 || rows >= most || cols >= most || nnz > most)
    throw std::invalid_argument("rows, cols and nnz must lie in [0, 2^31 - 1)");
  return {reinterpret_cast<const int32_t*>(offsets), reinterpret_cast<const int32_t*>(columns), rows, cols, nnz};
}

void bound_spmm(const std::string& dtype, uintptr_t x, int64_t batch, const BoundPlaces& places, uintptr_t values,
                uintptr_t order, uintptr_t bias, bool relu, uintptr_t y, uintptr_t workspace, const std::string& way,
                int device, uintptr_t stream) {
  const Number type = number_of(dtype);
  const Places w = places_of(places);
  const Way chosen = way_of(way);
  if (batch < 0) throw std::invalid_argument("spmm: negative batch");
  py::gil_scoped_release release;
  const char* error = spmm_cuda(type, reinterpret_cast<const void*>(x), batch, w, reinterpret_cast<const void*>(values),
                                reinterpret_cast<const int32_t*>(order), reinterpret_cast<const void*>(bias), relu,
                                reinterpret_cast<void*>(y), reinterpret_cast<void*>(workspace), chosen, device,
                                reinterpret_cast<void*>(stream));
  if (error) throw std::runtime_error(std::string("spmm: ") + error);
}

void bound_sddmm(const std::string& dtype, uintptr_t g, uintptr_t x, int64_t batch, const BoundPlaces& places,
                 uintptr_t dvalues, uintptr_t workspace, const std::string& way, int device, uintptr_t stream) {
  const Number type = number_of(dtype);
  const Places w = places_of(places);
  const Way chosen = way_of(way);
  if (batch < 0) throw std::invalid_argument("sddmm: negative batch");
  py::gil_scoped_release release;
  const char* error = sddmm_cuda(type, reinterpret_cast<const void*>(g), reinterpret_cast<const void*>(x), batch, w,
                                 reinterpret_cast<void*>(dvalues), reinterpret_cast<void*>(workspace), chosen, device,
                                 reinterpret_cast<void*>(stream));
  if (error) throw std::runtime_error(std::string("sddmm: ") + error);
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
  m.def("spmm", &bound_spmm, py::arg("dtype"), py::arg("x"), py::arg("batch"), py::arg("places"), py::arg("values"),
        py::arg("order"), py::arg("bias"), py::arg("relu"), py::arg("y"), py::arg("workspace"), py::arg("way"),
        py::arg("device"), py::arg("stream"));
  m.def("sddmm", &bound_sddmm, py::arg("dtype"), py::arg("g"), py::arg("x"), py::arg("batch"), py::arg("places"),
        py::arg("dvalues"), py::arg("workspace"), py::arg("way"), py::arg("device"), py::arg("stream"));
  m.def(
      "spmm_workspace",
      [](const std::string& dtype, int64_t batch, const BoundPlaces& places, bool ordered) {
        return spmm_workspace(number_of(dtype), batch, places_of(places), ordered);
      },
      py::arg("dtype"), py::arg("batch"), py::arg("places"), py::arg("ordered"));
  m.def(
      "sddmm_workspace",
      [](const std::string& dtype, int64_t batch, const BoundPlaces& places) {
        return sddmm_workspace(number_of(dtype), batch, places_of(places));
      },
      py::arg("dtype"), py::arg("batch"), py::arg("places"));
}
