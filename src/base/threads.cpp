#include "base/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"

namespace quaver {
namespace {

/// Tells the processor that this is a waiting loop.
void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Turns of a waiting loop before a thread sleeps: about 50 microseconds, longer than the gaps between the
/// operations of a step, shorter than what waking a sleeping thread costs on a virtual machine.
constexpr int kTurnsBeforeSleep = 3000;

}  // namespace

/// The threads beside the caller. They watch for a loop for a while after the last one, then sleep.
///
/// The caller takes items too and waits only for items that others have begun, never for a thread that the
/// system has not scheduled: on a busy machine a barrier over all threads would cost a time slice a loop.
class Threads::Pool {
 public:
  explicit Pool(int workers) {
    for (int index = 1; index <= workers; ++index) workers_.emplace_back([this, index] { work(index); });
  }
  ~Pool() {
    stopping_ = true;
    announce();
    for (std::thread& worker : workers_) worker.join();
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  /// False, with nothing done, while another loop runs: of another thread, or around this one.
  bool run(std::int64_t items, const Body& body) {
    const std::unique_lock only(callers_, std::try_to_lock);
    if (!only.owns_lock()) return false;
    Loop loop{items, body};
    current_ = &loop;
    announce();
    loop.take_items(0);
    current_ = nullptr;
    while (visitors_ != 0) relax();
    if (loop.error) std::rethrow_exception(loop.error);
    return true;
  }

 private:
  struct Loop {
    std::int64_t items;
    const Body& body;
    std::atomic<std::int64_t> next = 0;
    std::once_flag failed = {};
    std::exception_ptr error = {};

    void take_items(int thread) {
      try {
        for (std::int64_t item = next++; item < items; item = next++) body(item, thread);
      } catch (...) {
        next = items;
        std::call_once(failed, [this] { error = std::current_exception(); });
      }
    }
  };

  void announce() {
    ++announced_;
    announced_.notify_all();
  }

  void work(int index) {
    for (unsigned seen = 0; !stopping_;) {
      for (int turn = 0; announced_ == seen && turn < kTurnsBeforeSleep; ++turn) relax();
      announced_.wait(seen);
      seen = announced_;
      // The loop stays alive from here on: `run` takes it back first and looks for visitors then.
      ++visitors_;
      if (Loop* loop = current_) loop->take_items(index);
      --visitors_;
    }
  }

  std::mutex callers_;
  std::atomic<unsigned> announced_ = 0;
  std::atomic<Loop*> current_ = nullptr;
  std::atomic<int> visitors_ = 0;
  std::atomic<bool> stopping_ = false;
  std::vector<std::thread> workers_;
};

int available_threads() {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

Threads::Threads(int count) : count_(count == 0 ? available_threads() : count) {
  require(count >= 0 && count <= 1024,
          "threads: expected a number in [0, 1024] (0: all processors), found {}", count);
  pool_ = std::make_shared<Pool>(count_ - 1);
}

void Threads::for_each_on_thread(std::int64_t items, const Body& body) const {
  if (count_ > 1 && items > 1 && pool_->run(items, body)) return;
  for (std::int64_t item = 0; item < items; ++item) body(item, 0);
}

void Threads::for_each(std::int64_t items, const std::function<void(std::int64_t)>& body) const {
  for_each_on_thread(items, [&](std::int64_t item, int) { body(item); });
}

void Threads::for_blocks(std::int64_t size, std::int64_t block,
                         const std::function<void(std::int64_t, std::int64_t)>& body) const {
  const std::int64_t blocks = (size + block - 1) / block;
  for_each(blocks, [&](std::int64_t index) {
    const std::int64_t begin = index * block;
    body(begin, std::min(size, begin + block));
  });
}

}  // namespace quaver
