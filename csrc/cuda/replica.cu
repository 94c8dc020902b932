#include "replica_kernels.h"

namespace lotterykit {
namespace {

template <typename T, Residence PLACE>
void queue(const DeviceReplica<T>* table, const Turn* turns, const ReplicaLaunch& replicas, const Span& span,
           cudaStream_t stream) {
  launch(train_span<T, PLACE, false>, dim3(unsigned(replicas.count)), dim3(unsigned(replicas.threads)),
         size_t(replicas.shared_bytes), stream, table, turns, replicas.members, span);
}

}  // namespace

template <typename T>
const char* train_replicas_cuda(const DeviceReplica<T>* table, const Turn* turns, const ReplicaLaunch& replicas,
                                const Span& span, int device, void* stream) {
  cudaError_t error = cudaSetDevice(device);  // of this library's own CUDA runtime, as in topk_mask_cuda
  if (error == cudaSuccess && replicas.count > 0 && replicas.scored) {
    queue_score_training(table, turns, replicas, span, stream);
    error = cudaGetLastError();
  } else if (error == cudaSuccess && replicas.count > 0) {
    const auto on = static_cast<cudaStream_t>(stream);
    switch (replicas.residence) {
      case Residence::all: queue<T, Residence::all>(table, turns, replicas, span, on); break;
      case Residence::work_and_net: queue<T, Residence::work_and_net>(table, turns, replicas, span, on); break;
      case Residence::work: queue<T, Residence::work>(table, turns, replicas, span, on); break;
      case Residence::none: queue<T, Residence::none>(table, turns, replicas, span, on); break;
    }
    error = cudaGetLastError();
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* train_replicas_cuda(const DeviceReplica<float>*, const Turn*, const ReplicaLaunch&, const Span&,
                                         int, void*);
template const char* train_replicas_cuda(const DeviceReplica<double>*, const Turn*, const ReplicaLaunch&, const Span&,
                                         int, void*);

const char* shared_memory_cuda(int device, int (&found)[3]) {
  const cudaDeviceAttr wanted[] = {cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMaxSharedMemoryPerMultiprocessor,
                                   cudaDevAttrMultiProcessorCount};
  for (int i = 0; i < 3; ++i)
    if (const cudaError_t error = cudaDeviceGetAttribute(&found[i], wanted[i], device); error != cudaSuccess)
      return cudaGetErrorString(error);
  return nullptr;
}

}  // namespace lotterykit
