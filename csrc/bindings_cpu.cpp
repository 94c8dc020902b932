// The only pybind11 file of lotterykit._cpu. Python passes addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv2d.h"
#include "cpu/spmm.h"
#include "cpu/topk_mask.h"

namespace py = pybind11;
using namespace lotterykit;

namespace {

// Signal handlers run in Python's main thread only and need the GIL, which the native loops have released.
bool poll_signals(void*) {
  py::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

const std::vector<std::pair<std::string, Isa>> isa_names = {
    {"plain", Isa::plain}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};

std::vector<std::string> isa_levels() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : isa_names)
    if (isa <= best_isa()) names.push_back(name);
  return names;
}

Isa isa_of(const std::string& wanted) {
  if (wanted == "best") return Isa::best;
  for (const auto& [name, isa] : isa_names)
    if (name == wanted && isa <= best_isa()) return isa;
  throw std::invalid_argument("isa level '" + wanted + "' is unknown or not supported by this processor");
}

// Returns (status, tensor, index, competing); raises what a signal handler raised.
std::tuple<std::string, int64_t, int64_t, int64_t> bound_topk_mask(
    const std::vector<uintptr_t>& scores, const std::vector<uintptr_t>& within,
    const std::vector<uintptr_t>& masks, const std::vector<int64_t>& lengths, bool is_double, int64_t k,
    uint64_t seed, int threads, const std::string& isa) {
  if (masks.size() != scores.size() || lengths.size() != scores.size() ||
      (!within.empty() && within.size() != scores.size()))
    throw std::invalid_argument("topk_mask: scores, within, masks and lengths differ in number");
  int64_t total = 0;
  std::vector<Entries> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (lengths[i] < 0 || (total += lengths[i]) >= int64_t(1) << 32)
      throw std::invalid_argument("topk_mask: negative length, or 2^32 entries or more");
    tensors.push_back({reinterpret_cast<const void*>(scores[i]),
                       within.empty() ? nullptr : reinterpret_cast<const uint8_t*>(within[i]),
                       reinterpret_cast<uint8_t*>(masks[i]), lengths[i]});
  }
  if (k < 0) throw std::invalid_argument("topk_mask: k is negative");
  const Isa level = isa_of(isa);
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = topk_mask(tensors.data(), int64_t(tensors.size()), is_double ? Dtype::f64 : Dtype::f32, k, seed,
                        threads, level, poll_signals, nullptr);
  }
  if (outcome.status == Status::interrupted) throw py::error_already_set();
  const char* names[] = {"ok", "nan", "too_few", "interrupted"};
  return {names[int(outcome.status)], outcome.tensor, outcome.index, outcome.competing};
}

// (columns, segments, blocks, stride, rows, cols): addresses, then sizes; see Structure.
using PyStructure = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t>;

Structure structure_of(const PyStructure& s) {
  const auto [columns, segments, blocks, stride, rows, cols] = s;
  if (blocks < 1 || stride < 1 || rows < 0 || cols < 0) throw std::invalid_argument("malformed structure");
  return {reinterpret_cast<const int32_t*>(columns), reinterpret_cast<const int32_t*>(segments), blocks, stride,
          rows, cols};
}

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Runs `body(Run)` without the GIL; raises what a signal handler raised where it was stopped.
template <typename Body>
void run_stoppable(int threads, const std::string& isa, Body body) {
  const Isa level = isa_of(isa);
  bool done;
  {
    py::gil_scoped_release release;
    Watch watch(poll_signals, nullptr);
    done = body(Run{threads, level == Isa::best ? best_isa() : level, watch});
  }
  if (!done) throw py::error_already_set();
}

template <typename T>
void bound_spmm(uintptr_t x, int64_t batch, const PyStructure& w, uintptr_t values, uintptr_t order,
                uintptr_t bias, bool relu, uintptr_t y, int threads, const std::string& isa) {
  const Structure structure = structure_of(w);
  run_stoppable(threads, isa, [&](const Run& run) {
    return spmm(at<const T>(x), batch, structure, at<const T>(values), at<const int32_t>(order), at<const T>(bias),
                relu, at<T>(y), run);
  });
}

template <typename T>
void bound_sddmm(uintptr_t g, uintptr_t x, int64_t batch, const PyStructure& w, uintptr_t dvalues, int threads,
                 const std::string& isa) {
  const Structure structure = structure_of(w);
  run_stoppable(threads, isa, [&](const Run& run) {
    return sddmm(at<const T>(g), at<const T>(x), batch, structure, at<T>(dvalues), run);
  });
}

template <typename T>
void bound_spmm_backward(uintptr_t g, uintptr_t gate, uintptr_t x, int64_t batch, const PyStructure& w,
                         const PyStructure& transposed, uintptr_t values, uintptr_t order, uintptr_t dx,
                         uintptr_t dvalues, uintptr_t dbias, int threads, const std::string& isa) {
  const Structure structure = structure_of(w), turned = structure_of(transposed);
  run_stoppable(threads, isa, [&](const Run& run) {
    return spmm_backward(at<const T>(g), at<const T>(gate), at<const T>(x), batch, structure, turned,
                         at<const T>(values), at<const int32_t>(order),
                         Gradients<T>{at<T>(dx), at<T>(dvalues), at<T>(dbias)}, run);
  });
}

template <typename T>
void def_sparse_products(py::module_& m, const std::string& type) {
  m.def(("spmm_" + type).c_str(), &bound_spmm<T>);
  m.def(("sddmm_" + type).c_str(), &bound_sddmm<T>);
  m.def(("spmm_backward_" + type).c_str(), &bound_spmm_backward<T>);
}

// The fields of Convolution in their order; channels_last is 0 or 1.
using PyConvolution = std::array<int64_t, 17>;

Convolution convolution_of(const PyConvolution& c) {
  const Convolution conv{c[0], c[1], c[2],  c[3],  c[4],  c[5],  c[6],  c[7],
                         c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15], c[16] != 0};
  if (*std::min_element(c.begin(), c.end()) < 0 || conv.groups < 1 || conv.stride_height < 1 ||
      conv.stride_width < 1 || conv.out_height < 1 || conv.out_width < 1)
    throw std::invalid_argument("malformed convolution");
  return conv;
}

template <typename T>
void bound_conv2d(uintptr_t x, const PyConvolution& sizes, const PyStructure& w, uintptr_t values, uintptr_t bias,
                  bool relu, uintptr_t y, int threads, const std::string& isa) {
  const Structure structure = structure_of(w);
  const Convolution conv = convolution_of(sizes);
  run_stoppable(threads, isa, [&](const Run& run) {
    return conv2d(at<const T>(x), conv, structure, at<const T>(values), at<const T>(bias), relu, at<T>(y), run);
  });
}

template <typename T>
void bound_conv2d_backward(uintptr_t g, uintptr_t gate, uintptr_t x, const PyConvolution& sizes,
                           const PyStructure& w, uintptr_t values, uintptr_t dx, uintptr_t dvalues,
                           uintptr_t dbias, int threads, const std::string& isa) {
  const Structure structure = structure_of(w);
  const Convolution conv = convolution_of(sizes);
  run_stoppable(threads, isa, [&](const Run& run) {
    return conv2d_backward(at<const T>(g), at<const T>(gate), at<const T>(x), conv, structure, at<const T>(values),
                           Gradients<T>{at<T>(dx), at<T>(dvalues), at<T>(dbias)}, run);
  });
}

template <typename T>
void def_sparse_convolutions(py::module_& m, const std::string& type) {
  m.def(("conv2d_" + type).c_str(), &bound_conv2d<T>);
  m.def(("conv2d_backward_" + type).c_str(), &bound_conv2d_backward<T>);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of lotterykit; use lotterykit.ops, which validates.";
  m.def("isa_levels", &isa_levels, "Instruction sets that this processor has, in rising order.");
  m.def("topk_mask", &bound_topk_mask, py::arg("scores"), py::arg("within"), py::arg("masks"), py::arg("lengths"),
        py::arg("is_double"), py::arg("k"), py::arg("seed"), py::arg("threads"), py::arg("isa") = "best");
  def_sparse_products<float>(m, "float32");
  def_sparse_products<double>(m, "float64");
  def_sparse_convolutions<float>(m, "float32");
  def_sparse_convolutions<double>(m, "float64");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
