#include "base/threads.h"

#include <omp.h>

#include <algorithm>
#include <exception>
#include <mutex>

#include "base/check.h"

namespace quaver {

int available_threads() {
  return omp_get_num_procs();
}

Threads::Threads(int count) : count_(count == 0 ? available_threads() : count) {
  require(count >= 0 && count <= 1024,
          "threads: expected a number in [0, 1024] (0: all processors), found {}", count);
}

void Threads::for_each_on_thread(std::int64_t items,
                                 const std::function<void(std::int64_t, int)>& body) const {
  if (count_ == 1 || items <= 1) {
    for (std::int64_t item = 0; item < items; ++item) body(item, 0);
    return;
  }
  std::exception_ptr error;
  std::mutex error_mutex;
  const int team = static_cast<int>(std::min<std::int64_t>(count_, items));
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (std::int64_t item = 0; item < items; ++item) {
    try {
      body(item, omp_get_thread_num());
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
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
