// What every native loop shares: instruction sets, threads, and answering signals.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lotterykit {

// Instruction sets in rising order; `best` takes the highest that the processor has.
enum class Isa { best = -1, plain = 0, avx2 = 1, avx512 = 2 };

// The highest instruction set of this processor among those above; avx2 includes fma.
Isa best_isa();

// Returns true to stop. Called on the calling thread only, about every 20 ms.
using Poll = bool (*)(void* context);
constexpr auto poll_interval = std::chrono::milliseconds(20);

// Asks `poll` now and then whether to stop; only the calling thread asks.
class Watch {
 public:
  Watch(Poll poll, void* context) : poll_(poll), context_(context), last_(std::chrono::steady_clock::now()) {}
  void tick() {
    const auto now = std::chrono::steady_clock::now();
    if (poll_ == nullptr || now - last_ < poll_interval) return;
    if (poll_(context_)) stopped_ = true;
    last_ = std::chrono::steady_clock::now();
  }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  Poll poll_;
  void* context_;
  std::chrono::steady_clock::time_point last_;
  std::atomic<bool> stopped_{false};
};

// Runs body(thread, i) for i in [0, n), until done or stopped. An OpenMP region cannot be left by a throw,
// so lack of memory is carried out of it by hand.
template <typename Body>
void for_each(int64_t n, int threads, Watch& watch, Body body) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> no_memory{false};
  auto work = [&](int thread) {
    try {
      for (int64_t i; !no_memory && !watch.stopped() && (i = next.fetch_add(1)) < n;) {
        body(thread, i);
        if (thread == 0) watch.tick();
      }
    } catch (const std::bad_alloc&) {
      no_memory = true;
    }
  };
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num());
  } else {
    work(0);
  }
#else
  work(0);
#endif
  if (no_memory) throw std::bad_alloc();
}

}  // namespace lotterykit
