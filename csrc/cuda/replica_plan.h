// Plans of replicas for the CUDA trainer, made on the host: the compact form of each, and where it is to lie.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "replica.h"

namespace lotterykit {

// What a plan is made for: bytes of shared memory a block may take and a multiprocessor has, the batch.
struct DeviceBounds {
  int64_t block_bytes, multiprocessor_bytes, batch_size;
};

// A replica's compact form; where scores are trained, all of it, dense. `full` must outlive it; its pruned entries must be 0.
template <typename T>
class ReplicaPlan {
 public:
  // Throws std::invalid_argument where neurons or entries are too many for the trainer's 16-bit and 32-bit numbers.
  ReplicaPlan(const std::vector<int64_t>& widths, const Parameters<T>& full, const Training& training,
              const DeviceBounds& bounds, std::unique_ptr<Scores<T>> scores = nullptr);

  bool scored() const { return scores_ != nullptr; }
  ScoreRule score_rule() const { return scored() ? ScoreRule{scores_->gem, scores_->penalty} : ScoreRule{}; }
  int64_t state_size() const { return (scored() ? 6 : 3) * int64_t(shape.entries); }
  int64_t gradient_size() const { return passes_ > 1 ? shape.entries : 0; }
  int64_t scratch_size() const { return residence == Residence::none ? work_size() : 0; }
  void read(T* state) const;         // what DeviceReplica::state holds, from the full buffers
  void write_back(const T* state);   // and the way back

  DeviceShape shape{};
  Training training;
  std::vector<uint32_t> image;
  std::vector<int64_t> origin;  // of a flat entry in the full buffers, -1 for padding and pruned
  Residence residence{};
  int32_t threads{};
  int64_t shared_bytes{}, resident{};  // the block's need; how many such share a multiprocessor
  double cost{};                       // multiply-adds of a step and a lane

 private:
  void place(const DeviceBounds& bounds);
  int64_t work_size() const;

  Parameters<T> full_;
  std::unique_ptr<Scores<T>> scores_;  // null where weights are trained
  int64_t passes_ = 1;  // over a batch
};

}  // namespace lotterykit
