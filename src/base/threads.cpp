#include "base/threads.h"

#include <tbb/info.h>
#include <tbb/task_arena.h>
#include <tbb/task_group.h>

#include <algorithm>
#include <atomic>

#include "base/check.h"

namespace quaver {

int available_threads() {
  return tbb::info::default_concurrency();
}

Threads::Threads(int count) : count_(count == 0 ? available_threads() : count) {
  require(count >= 0 && count <= 1024,
          "threads: expected a number in [0, 1024] (0: all processors), found {}", count);
  arena_ = std::make_shared<tbb::task_arena>(count_);
}

void Threads::for_each_on_thread(std::int64_t items,
                                 const std::function<void(std::int64_t, int)>& body) const {
  std::atomic<std::int64_t> next = 0;
  const auto take_items = [&](int thread) {
    for (std::int64_t item = next++; item < items; item = next++) body(item, thread);
  };
  const int team = static_cast<int>(std::min<std::int64_t>(count_, items));
  if (team <= 1) return take_items(0);
  // The caller takes items too and waits only for items that others have begun, never for a helper that the
  // system has not scheduled: a barrier over all threads would cost a time slice a loop on a busy machine.
  arena_->execute([&] {
    tbb::task_group helpers;
    for (int thread = 1; thread < team; ++thread) helpers.run([&, thread] { take_items(thread); });
    helpers.run_and_wait([&] { take_items(0); });
  });
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
