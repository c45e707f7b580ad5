/// A caching allocator of host memory.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "quaver/backend.h"
#include "quaver/tensor.h"

namespace quaver {

/// Keeps freed blocks for the next request of the same size: a training step asks for the same sizes in the
/// same order, and the page faults of fresh memory would cost more than most operations that fill it. Blocks
/// are 64-byte aligned. Thread-safe.
class HostArena : public std::enable_shared_from_this<HostArena> {
 public:
  ~HostArena();
  /// Uninitialised memory; the storage keeps the arena alive and gives the block back.
  std::shared_ptr<Storage> allocate(std::size_t bytes);
  MemoryUse use() const;

 private:
  void release(void* block, std::size_t size);

  mutable std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;  // by rounded size
  MemoryUse use_;
};

}  // namespace quaver
