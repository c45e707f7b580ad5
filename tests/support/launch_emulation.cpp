// The checked longjmp takes a switch to another fiber's stack for an error.
#undef _FORTIFY_SOURCE

#include "support/launch_emulation.h"

#include <csetjmp>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

#include "base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace quaver::emulation {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;

/// Threads that wait for each other: released when all who are expected have come.
struct Meeting {
  int expected = 0, arrived = 0;
  std::uint64_t round = 0;

  void release_if_complete() {
    if (arrived < expected || arrived == 0) return;
    arrived = 0;
    ++round;
  }
};

struct Warp {
  Meeting meeting;
  std::array<const void*, kLanes> operands{};
};

/// One thread of the block. Started with makecontext, then switched with _setjmp and _longjmp, which need no
/// system call.
struct Fiber {
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  ucontext_t start{};
  jmp_buf resume_at{};
  bool started = false, ended = false;
  dim3 index;
  const Meeting* waits_for = nullptr;
  std::uint64_t waits_in_round = 0;
  const std::function<bool()>* condition = nullptr;

  bool can_run() const {
    return !ended && (!waits_for || waits_for->round != waits_in_round) && (!condition || (*condition)());
  }
};

/// The block that runs. Kernels are free functions in CUDA's spelling, so it cannot be handed to them.
struct Block {
  std::vector<Fiber> fibers;  // of the largest block so far; `threads` of them run
  int threads = 0, current = 0;
  Meeting barrier;
  std::vector<Warp> warps;
  std::vector<uint4> shared;  // aligned by hand
  void* shared_begin = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::exception_ptr error;
  jmp_buf scheduler{};
  const void* scheduler_stack = nullptr;
  std::size_t scheduler_stack_bytes = 0;
};
Block block;

void before_switch(void** saved, const void* stack, std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(saved, stack, bytes);
#else
  (void)saved, (void)stack, (void)bytes;
#endif
}
void after_switch(void* saved, const void** stack, std::size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
#else
  (void)saved, (void)stack, (void)bytes;
#endif
}

void to_scheduler() {
  Fiber& fiber = block.fibers[block.current];
  void* saved = nullptr;
  if (_setjmp(fiber.resume_at) == 0) {
    before_switch(fiber.ended ? nullptr : &saved, block.scheduler_stack, block.scheduler_stack_bytes);
    _longjmp(block.scheduler, 1);
  }
  after_switch(saved, nullptr, nullptr);
}

void wait_for(Meeting& meeting) {
  Fiber& fiber = block.fibers[block.current];
  fiber.waits_for = &meeting;
  fiber.waits_in_round = meeting.round;
  ++meeting.arrived;
  meeting.release_if_complete();
  if (!fiber.can_run()) to_scheduler();
  fiber.waits_for = nullptr;
}

void run_thread() {
  after_switch(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  try {
    (*block.kernel)();
  } catch (...) {
    block.error = std::current_exception();
  }
  Fiber& fiber = block.fibers[block.current];
  fiber.ended = true;
  for (Meeting* meeting : {&block.barrier, &block.warps[block.current / kLanes].meeting}) {
    --meeting->expected;
    meeting->release_if_complete();
  }
  to_scheduler();
}

void start(Fiber& fiber) {
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, &run_thread, 0);
  setcontext(&fiber.start);
}

void resume(int thread) {
  Fiber& fiber = block.fibers[thread];
  block.current = thread;
  threadIdx = fiber.index;
  void* saved = nullptr;
  if (_setjmp(block.scheduler) == 0) {
    before_switch(&saved, fiber.stack.get(), kStackBytes);
    if (fiber.started) _longjmp(fiber.resume_at, 1);
    start(fiber);
  }
  after_switch(saved, nullptr, nullptr);
}

void prepare_block(dim3 threads, std::size_t shared_bytes) {
  block.threads = static_cast<int>(threads.x * threads.y * threads.z);
  if (block.fibers.size() < static_cast<std::size_t>(block.threads)) block.fibers.resize(block.threads);
  block.warps.assign((block.threads + kLanes - 1) / kLanes, {});
  block.barrier = {block.threads, 0, 0};
  for (int i = 0; i < block.threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.started = fiber.ended = false;
    fiber.waits_for = nullptr;
    fiber.condition = nullptr;
    fiber.index = dim3(i % threads.x, i / threads.x % threads.y, i / (threads.x * threads.y));
    ++block.warps[i / kLanes].meeting.expected;
  }
  constexpr std::size_t kAlignment = 1024;
  block.shared.resize((shared_bytes + kAlignment) / sizeof(uint4) + 1);
  std::memset(block.shared.data(), 0xFF, block.shared.size() * sizeof(uint4));
  const auto address = reinterpret_cast<std::uintptr_t>(block.shared.data());
  block.shared_begin = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

void run_block(const char* name) {
  for (bool ran = true; ran && !block.error;) {
    ran = false;
    for (int i = 0; i < block.threads && !block.error; ++i) {
      if (!block.fibers[i].can_run()) continue;
      resume(i);
      ran = true;
    }
  }
  if (block.error) std::rethrow_exception(std::exchange(block.error, nullptr));
  for (int i = 0; i < block.threads; ++i) {
    if (!block.fibers[i].ended)
      fail(ErrorKind::failure, "{}: threads wait for each other (thread {} among them)", name, i);
  }
}

}  // namespace

void run(const char* name, dim3 blocks, dim3 threads, std::size_t shared_bytes,
         const std::function<void()>& kernel) {
  require(threads.x * threads.y * threads.z <= 1024, "{}: more than 1024 threads in a block", name);
  require(blocks.y < 65536 && blocks.z < 65536, "{}: the grid is too large", name);
  require(shared_bytes <= 227 * 1024, "{}: {} bytes of shared memory", name, shared_bytes);
  gridDim = blocks;
  blockDim = threads;
  block.kernel = &kernel;
  for (unsigned z = 0; z < blocks.z; ++z) {
    for (unsigned y = 0; y < blocks.y; ++y) {
      for (unsigned x = 0; x < blocks.x; ++x) {
        blockIdx = dim3(x, y, z);
        prepare_block(threads, shared_bytes);
        run_block(name);
      }
    }
  }
}

void* dynamic_shared_memory() {
  return block.shared_begin;
}

void wait_for_block() {
  wait_for(block.barrier);
}

void wait_until(const std::function<bool()>& condition) {
  if (condition()) return;
  Fiber& fiber = block.fibers[block.current];
  fiber.condition = &condition;
  to_scheduler();
  fiber.condition = nullptr;
}

int lane() {
  return block.current % kLanes;
}

const std::array<const void*, kLanes>& meet_warp(const void* operand) {
  Warp& warp = block.warps[block.current / kLanes];
  if (warp.meeting.expected != kLanes)
    fail(ErrorKind::failure, "a warp operation in a warp of {} threads", warp.meeting.expected);
  warp.operands[lane()] = operand;
  wait_for(warp.meeting);
  return warp.operands;
}

void leave_warp() {
  wait_for(block.warps[block.current / kLanes].meeting);
}

}  // namespace quaver::emulation
