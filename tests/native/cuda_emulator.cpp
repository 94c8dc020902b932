// The engine of cuda_emulator.h: fibers, barriers, collectives. One launch at a time.
#include "cuda_emulator.h"

#include <link.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {
namespace {

constexpr size_t stack_bytes = 256 << 10, usual_shared = 48 << 10;
constexpr uint64_t rubbish = 0xa5a5a5a5a5a5a5a5;

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros, group;
};

enum class State { ready, at_barrier, in_collective, ended };

struct Thread {
  unsigned number = 0;
  uint3 index{};
  State state = State::ended;
  bool vote = false;
  int votes = 0;
  const char* what = "";
  unsigned mask = 0;
  uint64_t bits = 0;
  uint64_t seen[32];
  std::vector<Copy> copies;
  size_t copy_group = 0;
  unsigned char* stack = nullptr;
#ifdef __x86_64__
  void* saved = nullptr;  // stack pointer while another runs
#else
  ucontext_t saved;
#endif
};

std::vector<std::unique_ptr<Thread>> all;  // of the largest block so far
unsigned in_block = 0, alive = 0, at_barrier = 0;
Thread* running = nullptr;
const std::function<void()>* body = nullptr;
Thread scheduler;
std::map<const void*, size_t> allowed_shared;
unsigned char* shared_bytes = nullptr;
std::recursive_mutex one_launch;

Thread& thread(unsigned number) { return *all[number]; }

const char* words(State state) {
  switch (state) {
    case State::ready: return "is ready";
    case State::at_barrier: return "is at a barrier of the block";
    case State::in_collective: return "is in a collective";
    default: return "has ended";
  }
}

void enter();

#ifdef __x86_64__
// Saves what a called function must keep, and the stack pointer; takes up another's. Four times the speed of
// swapcontext, which asks the kernel for the signal mask each time.
extern "C" void lotterykit_emulator_change(void** from, void* to);
asm(R"(
.text
.type lotterykit_emulator_change, @function
lotterykit_emulator_change:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size lotterykit_emulator_change, .-lotterykit_emulator_change
)");
void change(Thread& from, Thread& to) { lotterykit_emulator_change(&from.saved, to.saved); }
void make_context(Thread& t) {
  void** top = reinterpret_cast<void**>(t.stack + stack_bytes);
  *--top = nullptr;  // where `enter` would return to; also leaves the stack aligned as a call does
  *--top = reinterpret_cast<void*>(&enter);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  t.saved = top;
}
#else
void change(Thread& from, Thread& to) { swapcontext(&from.saved, &to.saved); }
void make_context(Thread& t) {
  getcontext(&t.saved);
  t.saved.uc_stack.ss_sp = t.stack;
  t.saved.uc_stack.ss_size = stack_bytes;
  t.saved.uc_link = nullptr;
  makecontext(&t.saved, enter, 0);
}
#endif

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_stack = nullptr;
size_t scheduler_size = 0;
#endif

// From the running thread to the scheduler; `last` where it never comes back.
void leave(bool last) {
  Thread& me = *running;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, scheduler_stack, scheduler_size);
  change(me, scheduler);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)last;
  change(me, scheduler);
#endif
}

void resume(Thread& t) {
  running = &t;
  threadIdx = t.index;
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, t.stack, stack_bytes);
  change(scheduler, t);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  change(scheduler, t);
#endif
}

void open_barrier() {
  int votes = 0;
  for (unsigned n = 0; n < in_block; ++n) votes += thread(n).state == State::at_barrier && thread(n).vote;
  for (unsigned n = 0; n < in_block; ++n) {
    if (thread(n).state != State::at_barrier) continue;
    thread(n).votes = votes;
    thread(n).state = State::ready;
  }
  at_barrier = 0;
}

void enter() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*body)();
  Thread& me = *running;
  me.state = State::ended;
  if (--alive && at_barrier == alive) open_barrier();
  leave(true);
  fail("a thread that has ended was run");
}

[[noreturn]] void deadlock() {
  std::fprintf(stderr, "cuda_emulator: block (%u, %u, %u) waits for ever:\n", blockIdx.x,
               blockIdx.y, blockIdx.z);
  for (unsigned n = 0; n < in_block; ++n) {
    const Thread& t = thread(n);
    std::fprintf(stderr, "  thread %u %s", n, words(t.state));
    if (t.state == State::in_collective) std::fprintf(stderr, ": %s, mask %08x", t.what, t.mask);
    std::fputc('\n', stderr);
  }
  fail("barriers or collectives that not all threads reach");
}

uint64_t random_bits(uint64_t& state) {  // xorshift64*, Vigna 2016
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 2685821657736338717ull;
}

template <typename T>
void shuffle(std::vector<T>& order, uint64_t& state) {
  if (state == 0) return;
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits(state) % i]);
}

// This library's thread-local segment, which holds the static shared memory of its kernels and nothing else.
int find_segment(dl_phdr_info* info, size_t, void* found) {
  const auto here = reinterpret_cast<uintptr_t>(&find_segment);
  bool ours = false;
  size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& part = info->dlpi_phdr[i];
    if (part.p_type == PT_LOAD && here - (info->dlpi_addr + part.p_vaddr) < part.p_memsz) ours = true;
    if (part.p_type == PT_TLS) bytes = part.p_memsz;
  }
  if (ours && info->dlpi_tls_data) {
    auto& [at, size] = *static_cast<std::pair<void*, size_t>*>(found);
    at = info->dlpi_tls_data;
    size = bytes;
  }
  return ours;
}

void fill_shared(size_t bytes) {
  if (bytes) std::memset(shared_bytes, 0xff, bytes);
#ifndef LOTTERYKIT_EMULATED_STATIC
  std::pair<void*, size_t> segment{nullptr, 0};
  dl_iterate_phdr(find_segment, &segment);
  if (segment.first) std::memset(segment.first, 0xff, segment.second);
#endif
}

void run_block(uint3 block, dim3 threads, size_t shared, uint64_t& order_state) {
  blockIdx = block;
  fill_shared(shared);
  std::vector<unsigned> order(in_block);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned n = 0; n < in_block; ++n) {
    Thread& t = thread(n);
    t.number = n;
    t.index = {n % threads.x, n / threads.x % threads.y, n / threads.x / threads.y};
    t.state = State::ready;
    t.copies.clear();
    t.copy_group = 0;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(t.stack, stack_bytes);
#endif
    make_context(t);
  }
  alive = in_block;
  at_barrier = 0;
  while (alive) {
    shuffle(order, order_state);
    bool moved = false;
    for (const unsigned n : order) {
      if (thread(n).state != State::ready) continue;
      moved = true;
      resume(thread(n));
    }
    if (!moved) deadlock();
  }
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("cuda_emulator: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputc('\n', stderr);
  va_end(arguments);
  std::abort();
}

void* dynamic_shared() { return shared_bytes; }

int barrier(bool vote) {
  Thread& me = *running;
  me.vote = vote;
  me.state = State::at_barrier;
  if (++at_barrier == alive) open_barrier();
  else leave(false);
  return me.votes;
}

const uint64_t* collective(const char* what, unsigned mask, uint64_t bits) {
  Thread& me = *running;
  const unsigned first = me.number / 32 * 32;
  if (!(mask >> (me.number - first) & 1)) fail("%s: lane %u is not in its mask %08x", what, me.number % 32, mask);
  me.what = what;
  me.mask = mask;
  me.bits = bits;
  me.state = State::in_collective;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (first + lane >= in_block) fail("%s: mask %08x names lane %u, which the block has not", what, mask, lane);
    const Thread& other = thread(first + lane);
    if (other.state == State::in_collective && other.mask == mask && std::strcmp(other.what, what) == 0) continue;
    leave(false);  // the last to come wakes the others
    return me.seen;
  }
  uint64_t seen[32];
  for (unsigned lane = 0; lane < 32; ++lane) seen[lane] = mask >> lane & 1 ? thread(first + lane).bits : rubbish;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    std::memcpy(thread(first + lane).seen, seen, sizeof seen);
    thread(first + lane).state = State::ready;
  }
  return me.seen;
}

void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || reinterpret_cast<uintptr_t>(to) % bytes ||
      reinterpret_cast<uintptr_t>(from) % bytes || zeros > bytes)
    fail("__pipeline_memcpy_async: %zu bytes from %p to %p, %zu zeros", bytes, from, to, zeros);
  running->copies.push_back({to, from, bytes, zeros, running->copy_group});
}

void commit_copies() { ++running->copy_group; }

void wait_copies(size_t prior) {
  auto& copies = running->copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group + prior >= running->copy_group) {
      copies[kept++] = copy;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
    std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
  }
  copies.resize(kept);
}

void allow_shared(const void* kernel, size_t bytes) {
  const std::lock_guard lock(one_launch);
  allowed_shared[kernel] = bytes;
}

int attribute(int which) {
  const char* given = std::getenv("LOTTERYKIT_EMULATED_SHARED");
  const int shared_limit = given ? std::atoi(given) : 227 << 10;
  switch (which) {
    case cudaDevAttrMultiProcessorCount: return 3;  // few: that blocks have several turns shows
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return shared_limit + 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return shared_limit;
    default: fail("device attribute %d is not emulated", which);
  }
}

Launch run(const void* kernel, dim3 grid, dim3 threads, size_t shared, const std::function<void()>& kernel_body) {
  const std::lock_guard lock(one_launch);
  const uint64_t count = uint64_t(threads.x) * threads.y * threads.z;
  const bool bad_grid = grid.x == 0 || grid.x >= 1u << 31 || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
                        grid.z > 65535;
  if (count == 0 || count > 1024 || threads.z > 64 || bad_grid) return Launch::bad_configuration;
  if (shared > (allowed_shared.count(kernel) ? allowed_shared[kernel] : usual_shared)) return Launch::bad_shared;
  while (all.size() < count) {
    all.push_back(std::make_unique<Thread>());
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (stack == MAP_FAILED) fail("no memory for the stacks of %u threads", unsigned(count));
    all.back()->stack = static_cast<unsigned char*>(stack);
  }
  in_block = unsigned(count);
  body = &kernel_body;
  blockDim = threads;
  gridDim = grid;
  shared_bytes = shared ? static_cast<unsigned char*>(std::malloc(shared)) : nullptr;
  const char* seed = std::getenv("LOTTERYKIT_EMULATED_ORDER");
  uint64_t order_state = seed ? std::strtoull(seed, nullptr, 10) : 0;
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t(0));
  shuffle(blocks, order_state);
  for (const uint64_t block : blocks)
    run_block({unsigned(block % grid.x), unsigned(block / grid.x % grid.y), unsigned(block / grid.x / grid.y)},
              threads, shared, order_state);
  std::free(shared_bytes);
  shared_bytes = nullptr;
  return Launch::done;
}

}  // namespace emulator
