/// Parallel loops whose work items depend on shapes alone, so that no result depends on the number of
/// threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace quaver {

/// Number of processors this process may run on.
int available_threads();

/// A fixed number of threads that share the items of a loop.
///
/// Items are handed out in ascending order by a counter; which thread runs an item is not defined, so an item
/// must write only what belongs to it. The first exception thrown by an item ends the loop and is rethrown;
/// items that had not begun are then left out. A loop inside a loop, or beside one of another caller, runs on
/// its caller's thread alone.
class Threads {
 public:
  using Body = std::function<void(std::int64_t item, int thread)>;

  /// `count` threads; 0 means `available_threads()`.
  explicit Threads(int count = 0);
  int count() const { return count_; }

  /// Runs `body(item)` for every item in [0, items).
  void for_each(std::int64_t items, const std::function<void(std::int64_t)>& body) const;

  /// Cuts [0, size) into blocks of `block` (the last may be shorter) and runs `body(begin, end)` for each.
  void for_blocks(std::int64_t size, std::int64_t block,
                  const std::function<void(std::int64_t, std::int64_t)>& body) const;

  /// As `for_each`, and tells `body(item, thread)` the thread, in [0, count), so that it can use scratch
  /// memory of its own.
  void for_each_on_thread(std::int64_t items, const Body& body) const;

 private:
  class Pool;

  int count_;
  std::shared_ptr<Pool> pool_;  // copies of this object share it
};

}  // namespace quaver
