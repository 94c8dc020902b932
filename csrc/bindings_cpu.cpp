// The only pybind11 file of lotterykit._cpu. Python passes addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

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

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of lotterykit; use lotterykit.ops, which validates.";
  m.def("isa_levels", &isa_levels, "Instruction sets that this processor has, in rising order.");
  m.def("topk_mask", &bound_topk_mask, py::arg("scores"), py::arg("within"), py::arg("masks"), py::arg("lengths"),
        py::arg("is_double"), py::arg("k"), py::arg("seed"), py::arg("threads"), py::arg("isa") = "best");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
