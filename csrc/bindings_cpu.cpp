// The only pybind11 file of lotterykit._cpu. Python passes addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/conv2d.h"
#include "cpu/match_neurons.h"
#include "cpu/replica.h"
#include "cpu/spmm.h"
#include "cpu/synflow.h"
#include "cpu/threshold.h"
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

// Returns (status, tensor, index, competing, threshold, rank); raises what a signal handler raised.
std::tuple<std::string, int64_t, int64_t, int64_t, double, int64_t> bound_topk_mask(
    const std::vector<uintptr_t>& scores, const std::vector<uintptr_t>& within,
    const std::vector<uintptr_t>& masks, const std::vector<int64_t>& lengths, bool is_double, int64_t k,
    uint64_t seed, int threads, const std::string& isa,
    const std::optional<std::tuple<double, double, uint32_t, uint32_t>>& guess) {
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
  Guess expected{};
  if (guess) expected = {std::get<0>(*guess), std::get<1>(*guess), std::get<2>(*guess), std::get<3>(*guess)};
  if (!(expected.low <= expected.high)) throw std::invalid_argument("topk_mask: a guess that is no interval");
  const Isa level = isa_of(isa);
  Outcome outcome;
  {
    py::gil_scoped_release release;
    outcome = topk_mask(tensors.data(), int64_t(tensors.size()), is_double ? Dtype::f64 : Dtype::f32, k, seed,
                        guess ? &expected : nullptr, threads, level, poll_signals, nullptr);
  }
  if (outcome.status == Status::interrupted) throw py::error_already_set();
  const char* names[] = {"ok", "nan", "too_few", "interrupted"};
  return {names[int(outcome.status)], outcome.tensor,    outcome.index,
          outcome.competing,          outcome.threshold, outcome.rank};
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

// Replicas that train side by side, threads over replicas; each has its own data, order and learning rates.
template <typename T>
class Replicas {
 public:
  using Starts = std::array<std::vector<int64_t>, 2>;
  using Data = std::tuple<uintptr_t, uintptr_t, int64_t>;
  using Settings = std::tuple<int, int, double, double, double, double, double>;

  // tensors: addresses of values, first and second moments, pruned (or 0); starts: of weights, of biases.
  // settings: (loss, rule, beta1, beta2, eps, momentum, weight decay).
  void add(const std::vector<int64_t>& widths, const std::array<uintptr_t, 4>& tensors, const Starts& starts,
           const Data& train, const std::vector<Data>& tests, const Settings& settings) {
    py::gil_scoped_release release;
    replicas_.push_back(std::make_unique<Replica<T>>(widths, parameters(tensors, starts), examples(train),
                                                     training(settings)));
    add_tests(tests);
  }

  // scores: addresses of scores, active, kept; then (gem, penalty, groups of tensors, their seeds).
  void add_scored(const std::vector<int64_t>& widths, const std::array<uintptr_t, 4>& tensors, const Starts& starts,
                  const std::array<uintptr_t, 3>& scores,
                  const std::tuple<bool, double, std::vector<std::vector<int64_t>>, std::vector<uint64_t>>& choice,
                  const Data& train, const std::vector<Data>& tests, const Settings& settings) {
    const auto& [gem, penalty, groups, seeds] = choice;
    py::gil_scoped_release release;
    replicas_.push_back(std::make_unique<Replica<T>>(
        widths, parameters(tensors, starts),
        Scores<T>{at<T>(scores[0]), at<const uint8_t>(scores[1]), at<uint8_t>(scores[2]), gem, penalty, groups, seeds},
        examples(train), training(settings)));
    add_tests(tests);
  }

  // Trains replica r on the examples order[r][from:to] with rates[r][step] a step; then evaluates all on each of
  // their tests, if `evaluates`: (loss, accuracy) by replica and test. Score training keeps keeps[r][group]
  // entries on the way and ends[r][group] at the end; empty for weights.
  std::vector<std::vector<std::pair<double, double>>> run(
      const std::vector<uintptr_t>& orders, int64_t from, int64_t to, int64_t batch_size,
      const std::vector<uintptr_t>& rates, const std::vector<int64_t>& steps,
      const std::vector<std::vector<int64_t>>& keeps, const std::vector<std::vector<int64_t>>& ends, bool evaluates,
      int threads, const std::string& isa) {
    const size_t count = replicas_.size();
    if (orders.size() != count || rates.size() != count || steps.size() != count || keeps.size() != count ||
        ends.size() != count || batch_size < 1)
      throw std::invalid_argument("replicas: orders, rates, steps, keeps and ends must be one a replica");
    std::vector<std::vector<std::pair<double, double>>> found(count);
    threads = std::max(1, std::min(threads, int(count)));
    if (work_.size() < size_t(threads)) work_.resize(threads);
    run_stoppable(threads, isa, [&](const Run& run) {
      for_each(int64_t(count), run.threads, run.watch, [&](int thread, int64_t r) {
        Replica<T>& replica = *replicas_[r];
        if (replica.scored) replica.keep(keeps[r], run.isa);
        if (!replica.train(at<const int64_t>(orders[r]), from, to, batch_size, at<const double>(rates[r]), steps[r],
                           work_[thread], run.watch, thread == 0, run.isa))
          return;
        if (replica.scored) replica.keep(ends[r], run.isa);
        for (size_t t = 0; evaluates && t < tests_[r].size(); ++t) {
          const Evaluation result = replica.evaluate(tests_[r][t], work_[thread], run.isa);
          found[r].push_back({result.loss, result.accuracy});
        }
      });
      return !run.watch.stopped();
    });
    return found;
  }

  void write_back(const std::string& isa) const {
    const Isa level = isa_of(isa);
    for (const auto& replica : replicas_) replica->write_back(level == Isa::best ? best_isa() : level);
  }

  void read_scores() const {
    for (const auto& replica : replicas_) replica->read_scores();
  }

 private:
  static Parameters<T> parameters(const std::array<uintptr_t, 4>& tensors, const Starts& starts) {
    return {at<T>(tensors[0]), at<T>(tensors[1]), at<T>(tensors[2]), at<const uint8_t>(tensors[3]),
            starts[0],         starts[1]};
  }
  static Training training(const Settings& settings) {
    const auto [loss, rule, beta1, beta2, eps, momentum, decay] = settings;
    return {Loss(loss), Rule(rule), beta1, beta2, eps, momentum, decay};
  }
  static Examples<T> examples(const Data& data) {
    return {at<const T>(std::get<0>(data)), at<const void>(std::get<1>(data)), std::get<2>(data)};
  }
  void add_tests(const std::vector<Data>& tests) {
    tests_.emplace_back();
    for (const Data& test : tests) tests_.back().push_back(examples(test));
  }
  std::vector<std::unique_ptr<Replica<T>>> replicas_;
  std::vector<std::vector<Examples<T>>> tests_;
  std::vector<Workspace<T>> work_;
};

template <typename T>
void def_replicas(py::module_& m, const std::string& type) {
  py::class_<Replicas<T>>(m, ("Replicas_" + type).c_str())
      .def(py::init<>())
      .def("add", &Replicas<T>::add)
      .def("add_scored", &Replicas<T>::add_scored)
      .def("run", &Replicas<T>::run)
      .def("read_scores", &Replicas<T>::read_scores)
      .def("write_back", &Replicas<T>::write_back);
}

void bound_match_neurons(uintptr_t theta, int64_t targets, int64_t places, uintptr_t candidates, int64_t count,
                         double tie, uintptr_t chosen, uintptr_t product, uintptr_t norm, uintptr_t aligned) {
  if (targets < 0 || places < 0 || targets > count)
    throw std::invalid_argument("match_neurons: more targets than candidates, or a negative size");
  const Matches out{at<int64_t>(chosen), at<double>(product), at<double>(norm), at<uint8_t>(aligned)};
  run_stoppable(1, "best", [&](const Run& run) {
    return match_neurons(at<const double>(theta), targets, places, at<const double>(candidates), count, tie, out,
                         run.watch);
  });
}

// (layers, kept, seed): see FlowCount.
using PyFlowCount = std::tuple<std::vector<int64_t>, int64_t, uint64_t>;

template <typename T>
std::vector<FlowCount> flow_counts(const Flow<T>& flow, const std::vector<PyFlowCount>& given) {
  std::vector<FlowCount> counts;
  for (const auto& [layers, kept, seed] : given) {
    for (const int64_t layer : layers)
      if (layer < 0 || layer >= flow.layers()) throw std::invalid_argument("synflow: no such layer");
    if (kept < 0) throw std::invalid_argument("synflow: kept is negative");
    counts.push_back({layers, kept, seed});
  }
  return counts;
}

std::string flow_status(FlowStatus status) {
  if (status == FlowStatus::interrupted) throw py::error_already_set();
  return status == FlowStatus::ok ? "ok" : "overflow";
}

// layers: (weight address, mask address or 0, rows, columns, groups).
template <typename T>
std::unique_ptr<Flow<T>> make_flow(
    const std::vector<std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>>& layers, const std::string& isa) {
  std::vector<FlowSource> sources;
  for (const auto& [weight, mask, rows, columns, groups] : layers) {
    if (rows < 0 || columns < 0 || columns >= int64_t(1) << 31 || groups < 1 || rows % groups != 0)
      throw std::invalid_argument("synflow: malformed layer");
    sources.push_back({at<const void>(weight), at<const uint8_t>(mask), rows, columns, groups});
  }
  const Isa level = isa_of(isa);
  py::gil_scoped_release release;
  return std::make_unique<Flow<T>>(sources.data(), int64_t(sources.size()), level);
}

template <typename T>
std::string run_flow_chain(Flow<T>& flow, const std::vector<uintptr_t>& biases,
                           const std::vector<std::vector<PyFlowCount>>& rounds, uintptr_t kept_after,
                           uintptr_t live_after) {
  if (flow.layers() < 1 || int64_t(biases.size()) != flow.layers())
    throw std::invalid_argument("synflow: a chain has layers, and a bias address or 0 for each");
  std::vector<const double*> bias;
  for (const uintptr_t address : biases) bias.push_back(at<const double>(address));
  std::vector<std::vector<FlowCount>> counts;
  for (const auto& round : rounds) counts.push_back(flow_counts(flow, round));
  FlowStatus status;
  {
    py::gil_scoped_release release;
    Watch watch(poll_signals, nullptr);
    status = flow.chain(bias, counts, at<int64_t>(kept_after), at<uint8_t>(live_after), watch);
  }
  return flow_status(status);
}

template <typename T>
std::string run_flow_scores(Flow<T>& flow, const std::vector<uintptr_t>& biases, const std::vector<uintptr_t>& out) {
  if (flow.layers() < 1 || int64_t(biases.size()) != flow.layers() || out.size() != biases.size())
    throw std::invalid_argument("synflow: a chain has layers, and a bias address or 0 and an output for each");
  std::vector<const double*> bias;
  std::vector<double*> scores;
  for (const uintptr_t address : biases) bias.push_back(at<const double>(address));
  for (const uintptr_t address : out) scores.push_back(at<double>(address));
  py::gil_scoped_release release;
  return flow.chain_scores(bias, scores) == FlowStatus::ok ? "ok" : "overflow";
}

template <typename T>
void def_flow(py::module_& m, const std::string& type) {
  using Class = Flow<T>;
  const auto checked = [](const Class& flow, int64_t layer) {
    if (layer < 0 || layer >= flow.layers()) throw std::invalid_argument("synflow: no such layer");
  };
  py::class_<Class>(m, ("Flow_" + type).c_str())
      .def(py::init(&make_flow<T>), py::arg("layers"), py::arg("isa") = "best")
      .def_property_readonly("finite", &Class::finite)
      .def("kept", [checked](const Class& f, int64_t layer) { return checked(f, layer), f.kept(layer); })
      .def("forward",
           [checked](Class& f, int64_t layer, uintptr_t x, uintptr_t y) {
             checked(f, layer);
             py::gil_scoped_release release;
             f.forward(layer, at<const double>(x), at<double>(y));
           })
      .def("read_matrix",
           [checked](Class& f, int64_t layer, int64_t lanes) { checked(f, layer), f.read_matrix(layer, lanes); })
      .def("read_image",
           [checked](Class& f, int64_t layer, uintptr_t offsets, int64_t group_stride, int64_t x_size,
                     int64_t lanes) {
             checked(f, layer);
             f.read_image(layer, at<const int32_t>(offsets), group_stride, x_size, lanes);
           })
      .def("backward",
           [checked](Class& f, int64_t layer, uintptr_t g, uintptr_t dx) {
             checked(f, layer);
             py::gil_scoped_release release;
             f.backward(layer, at<const double>(g), at<double>(dx));
           })
      .def("select",
           [](Class& f, const std::vector<PyFlowCount>& given) {
             const std::vector<FlowCount> counts = flow_counts(f, given);
             FlowStatus status;
             {
               py::gil_scoped_release release;
               Watch watch(poll_signals, nullptr);
               status = f.select(counts.data(), int64_t(counts.size()), watch);
             }
             return flow_status(status);
           })
      .def("write_mask",
           [checked](const Class& f, int64_t layer, uintptr_t mask) {
             checked(f, layer);
             py::gil_scoped_release release;
             f.write_mask(layer, at<uint8_t>(mask));
           })
      .def("chain", &run_flow_chain<T>)
      .def("chain_scores", &run_flow_scores<T>);
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

// (threshold, rank, absolute, seed, position): see Cut.
using PyCut = std::tuple<double, int64_t, bool, uint64_t, uint32_t>;

// offsets [rows + 1] and the number of kept weights; the offsets are whole only where that fits 31 bits.
template <typename T>
int64_t bound_kept_bits(uintptr_t scores, int64_t rows, int64_t cols, const PyCut& given, uintptr_t bits,
                        uintptr_t offsets, int threads, const std::string& isa) {
  const auto [threshold, rank, absolute, seed, position] = given;
  if (rows < 0 || cols < 0 || rank < -1) throw std::invalid_argument("kept_bits: malformed");
  const Cut<T> cut{T(threshold), rank, absolute, tie_seed(seed), position};
  std::vector<int64_t> counts(static_cast<size_t>(rows));
  run_stoppable(threads, isa, [&](const Run& run) {
    return kept_bits(at<const T>(scores), rows, cols, cut, at<uint8_t>(bits), counts.data(), run);
  });
  int64_t nnz = 0;
  for (int64_t r = 0; r < rows; ++r) {
    at<int32_t>(offsets)[r] = int32_t(nnz);
    nnz += counts[size_t(r)];
  }
  at<int32_t>(offsets)[rows] = int32_t(nnz);
  return nnz;
}

template <typename T>
void bound_expand_bits(uintptr_t bits, uintptr_t weight, int64_t rows, int64_t cols, uintptr_t out, int threads,
                       const std::string& isa) {
  run_stoppable(threads, isa, [&](const Run& run) {
    return expand_bits(at<const uint8_t>(bits), at<const T>(weight), rows, cols, at<T>(out), run);
  });
}

template <typename T>
void bound_compress_bits(uintptr_t bits, uintptr_t weight, int64_t rows, int64_t cols, uintptr_t offsets,
                         uintptr_t columns, uintptr_t values, int threads, const std::string& isa) {
  run_stoppable(threads, isa, [&](const Run& run) {
    return compress_bits(at<const uint8_t>(bits), at<const T>(weight), rows, cols, at<const int32_t>(offsets),
                         at<int32_t>(columns), at<T>(values), run);
  });
}

void bound_transpose_structure(uintptr_t offsets, uintptr_t columns, int64_t rows, int64_t cols,
                               uintptr_t column_offsets, uintptr_t of_row, uintptr_t order) {
  py::gil_scoped_release release;
  transpose_structure(at<const int32_t>(offsets), at<const int32_t>(columns), rows, cols,
                      at<int32_t>(column_offsets), at<int32_t>(of_row), at<int32_t>(order));
}

template <typename T>
void bound_straight_through(uintptr_t g, uintptr_t weight, uintptr_t scores, int64_t count, int threads,
                            const std::string& isa) {
  run_stoppable(threads, isa, [&](const Run& run) {
    return straight_through(at<T>(g), at<const T>(weight), at<const T>(scores), count, run);
  });
}

template <typename T>
void def_thresholds(py::module_& m, const std::string& type) {
  m.def(("kept_bits_" + type).c_str(), &bound_kept_bits<T>);
  m.def(("expand_bits_" + type).c_str(), &bound_expand_bits<T>);
  m.def(("compress_bits_" + type).c_str(), &bound_compress_bits<T>);
  m.def(("straight_through_" + type).c_str(), &bound_straight_through<T>);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels of lotterykit; use lotterykit.ops, which validates.";
  m.def("isa_levels", &isa_levels, "Instruction sets that this processor has, in rising order.");
  m.def("topk_mask", &bound_topk_mask, py::arg("scores"), py::arg("within"), py::arg("masks"), py::arg("lengths"),
        py::arg("is_double"), py::arg("k"), py::arg("seed"), py::arg("threads"), py::arg("isa") = "best",
        py::arg("guess") = py::none());
  def_sparse_products<float>(m, "float32");
  def_sparse_products<double>(m, "float64");
  def_replicas<float>(m, "float32");
  def_replicas<double>(m, "float64");
  m.def("match_neurons", &bound_match_neurons);
  def_flow<float>(m, "float32");
  def_flow<double>(m, "float64");
  def_sparse_convolutions<float>(m, "float32");
  def_sparse_convolutions<double>(m, "float64");
  m.def("transpose_structure", &bound_transpose_structure);
  def_thresholds<float>(m, "float32");
  def_thresholds<double>(m, "float64");
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
