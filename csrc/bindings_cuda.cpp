// The only pybind11 file of lotterykit._cuda. Python passes device addresses that lotterykit.ops has validated.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/replica_plan.h"
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

// The plans of replicas that train side by side, and the memory that they want: Python owns it, on both sides.
template <typename T>
class ReplicaPlans {
 public:
  using Starts = std::array<std::vector<int64_t>, 2>;
  using Settings = std::tuple<int, int, double, double, double, double, double>;
  using Launch = std::tuple<bool, int, int, int64_t, std::vector<int32_t>>;

  ReplicaPlans(int64_t block_bytes, int64_t multiprocessor_bytes, int64_t batch_size)
      : bounds_{block_bytes, multiprocessor_bytes, batch_size} {
    if (batch_size < 1) throw std::invalid_argument("replicas: a batch of no examples");
  }

  // tensors: host addresses of values, first and second moments, pruned (or 0); starts: of weights, of biases.
  // settings: (loss, rule, beta1, beta2, eps, momentum, weight decay).
  void add(const std::vector<int64_t>& widths, const std::array<uintptr_t, 4>& tensors, const Starts& starts,
           const Settings& settings) {
    add_plan(widths, tensors, starts, nullptr, settings);
  }

  // scores: addresses of scores, active, kept (unused); then (gem, penalty, groups of tensors, their seeds).
  void add_scored(const std::vector<int64_t>& widths, const std::array<uintptr_t, 4>& tensors, const Starts& starts,
                  const std::array<uintptr_t, 3>& scores,
                  const std::tuple<bool, double, std::vector<std::vector<int64_t>>, std::vector<uint64_t>>& choice,
                  const Settings& settings) {
    const auto& [gem, penalty, groups, seeds] = choice;
    auto given = std::make_unique<Scores<T>>(Scores<T>{at<T>(scores[0]), at<const uint8_t>(scores[1]),
                                                       at<uint8_t>(scores[2]), gem, penalty, groups, seeds});
    add_plan(widths, tensors, starts, std::move(given), settings);
  }

  // Words of all images, then numbers of type T of all states, gradients and work.
  std::array<int64_t, 4> sizes() const {
    std::array<int64_t, 4> found{};
    for (const auto& plan : plans_) {
      found[0] += plan->shape.words, found[1] += plan->state_size();
      found[2] += plan->gradient_size(), found[3] += plan->scratch_size();
    }
    return found;
  }

  // Writes all images and states to host memory.
  void write(uintptr_t images, uintptr_t states) const {
    py::gil_scoped_release release;
    uint32_t* image = at<uint32_t>(images);
    T* state = at<T>(states);
    for (const auto& plan : plans_) {
      std::memcpy(image, plan->image.data(), 4 * plan->image.size());
      plan->read(state);
      image += plan->shape.words, state += plan->state_size();
    }
  }
  void write_back(uintptr_t states) const {
    py::gil_scoped_release release;
    const T* state = at<const T>(states);
    for (const auto& plan : plans_) {
      plan->write_back(state);
      state += plan->state_size();
    }
  }

  // The kernel's table as bytes, from the device addresses of images, states, gradients, work, tests and what they
  // find, and of x_train and y_train with the number of tests of each replica.
  py::bytes table(const std::array<uintptr_t, 6>& memory, const std::vector<std::array<uintptr_t, 2>>& data,
                  const std::vector<int64_t>& tested) const {
    if (data.size() != plans_.size() || tested.size() != plans_.size())
      throw std::invalid_argument("replicas: one row of data a replica");
    std::vector<DeviceReplica<T>> rows;
    const uint32_t* image = at<const uint32_t>(memory[0]);
    T *state = at<T>(memory[1]), *gradients = at<T>(memory[2]), *work = at<T>(memory[3]);
    const TestSet<T>* tests = at<const TestSet<T>>(memory[4]);
    double* found = at<double>(memory[5]);
    for (size_t r = 0; r < plans_.size(); ++r) {
      const ReplicaPlan<T>& plan = *plans_[r];
      rows.push_back({image, state, plan.gradient_size() ? gradients : nullptr, plan.scratch_size() ? work : nullptr,
                      at<const T>(data[r][0]), at<const void>(data[r][1]), tests, tested[r], found, plan.training, plan.score_rule()});
      image += plan.shape.words, state += plan.state_size();
      gradients += plan.gradient_size(), work += plan.scratch_size();
      tests += tested[r], found += 2 * tested[r];
    }
    return {reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(DeviceReplica<T>)};
  }

  // (scored, residence, threads, bytes of shared memory, replicas) of each launch: those that share a multiprocessor with
  // as many others go together, the longest first.
  std::vector<Launch> launches() const {
    std::map<std::array<int64_t, 4>, Launch> found;
    for (size_t r = 0; r < plans_.size(); ++r) {
      const ReplicaPlan<T>& plan = *plans_[r];
      Launch& launch = found[{plan.scored(), int64_t(plan.residence), plan.threads, plan.resident}];
      auto& [scored, residence, threads, bytes, members] = launch;
      scored = plan.scored(), residence = int(plan.residence), threads = plan.threads, bytes = std::max(bytes, plan.shared_bytes);
      members.push_back(int32_t(r));
    }
    std::vector<Launch> launches;
    for (auto& [key, launch] : found) {
      auto& members = std::get<4>(launch);
      std::stable_sort(members.begin(), members.end(),
                       [&](int32_t a, int32_t b) { return plans_[a]->cost > plans_[b]->cost; });
      launches.push_back(launch);
    }
    return launches;
  }

  // Multiply-adds of a step of each replica.
  std::vector<double> costs() const {
    std::vector<double> found;
    for (const auto& plan : plans_) found.push_back(plan->cost);
    return found;
  }

  // Queues order[from:to] for `count` replicas of a launch; members, table and turns are device addresses.
  static void run(uintptr_t table, uintptr_t turns, uintptr_t members, int64_t count, bool scored, int residence, int threads,
                  int64_t bytes, int64_t begin, int64_t from, int64_t to, int64_t batch_size, bool evaluate, int device,
                  uintptr_t stream) {
    if (begin < 0 || from < begin || to < from || batch_size < 1 || residence < 0 || residence >= residences)
      throw std::invalid_argument("replicas: no such span or residence");
    py::gil_scoped_release release;
    const ReplicaLaunch launch{at<const int32_t>(members), count, scored, Residence(residence), threads, bytes};
    const char* error = train_replicas_cuda<T>(at<const DeviceReplica<T>>(table), at<const Turn>(turns), launch,
                                               {begin, from, to, batch_size, evaluate}, device, at<void>(stream));
    if (error) throw std::runtime_error(std::string("train_replicas: ") + error);
  }

 private:
  void add_plan(const std::vector<int64_t>& widths, const std::array<uintptr_t, 4>& tensors, const Starts& starts,
                std::unique_ptr<Scores<T>> scores, const Settings& settings) {
    const auto [loss, rule, beta1, beta2, eps, momentum, decay] = settings;
    const Training training{Loss(loss), Rule(rule), beta1, beta2, eps, momentum, decay};
    const Parameters<T> full{at<T>(tensors[0]), at<T>(tensors[1]), at<T>(tensors[2]), at<const uint8_t>(tensors[3]),
                             starts[0],         starts[1]};
    py::gil_scoped_release release;
    plans_.push_back(std::make_unique<ReplicaPlan<T>>(widths, full, training, bounds_, std::move(scores)));
  }
  template <typename P>
  static P* at(uintptr_t address) { return reinterpret_cast<P*>(address); }

  DeviceBounds bounds_;
  std::vector<std::unique_ptr<ReplicaPlan<T>>> plans_;
};

template <typename T>
void def_replica_plans(py::module_& m, const std::string& type) {
  py::class_<ReplicaPlans<T>>(m, ("ReplicaPlans_" + type).c_str())
      .def(py::init<int64_t, int64_t, int64_t>())
      .def("add", &ReplicaPlans<T>::add)
      .def("add_scored", &ReplicaPlans<T>::add_scored)
      .def("sizes", &ReplicaPlans<T>::sizes)
      .def("write", &ReplicaPlans<T>::write)
      .def("write_back", &ReplicaPlans<T>::write_back)
      .def("table", &ReplicaPlans<T>::table)
      .def("launches", &ReplicaPlans<T>::launches)
      .def("costs", &ReplicaPlans<T>::costs)
      .def_static("run", &ReplicaPlans<T>::run);
}

std::array<int, 3> bound_shared_memory(int device) {
  int found[3] = {};
  if (const char* error = shared_memory_cuda(device, found))
    throw std::runtime_error(std::string("shared_memory: ") + error);
  return {found[0], found[1], found[2]};
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
  // Bytes of shared memory of a block and of a multiprocessor, and how many of these a device has.
  m.def("shared_memory", &bound_shared_memory, py::arg("device"));
  def_replica_plans<float>(m, "float32");
  def_replica_plans<double>(m, "float64");
}
