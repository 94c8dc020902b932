#include "replica_kernels.h"

namespace lotterykit {

template <typename T>
void queue_score_training(const DeviceReplica<T>* table, const Turn* turns, const ReplicaLaunch& replicas,
                          const Span& span, void* stream) {
  // ReplicaPlan::place puts the state of a scored network into shared memory whole or not at all.
  const auto kernel = replicas.residence == Residence::none ? train_span<T, Residence::none, true>
                                                            : train_span<T, Residence::work_and_net, true>;
  launch(kernel, dim3(unsigned(replicas.count)), dim3(unsigned(replicas.threads)), size_t(replicas.shared_bytes),
         static_cast<cudaStream_t>(stream), table, turns, replicas.members, span);
}

template void queue_score_training(const DeviceReplica<float>*, const Turn*, const ReplicaLaunch&, const Span&, void*);
template void queue_score_training(const DeviceReplica<double>*, const Turn*, const ReplicaLaunch&, const Span&,
                                   void*);

}  // namespace lotterykit
