/// A caching allocator of host or device memory.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "quaver/backend.h"
#include "quaver/tensor.h"

namespace quaver {

/// Where an arena gets its blocks: at least 64-byte aligned.
struct MemorySource {
  Device device = Device::host;
  std::function<void*(std::size_t)> allocate;  ///< null if there is no memory left
  std::function<void(void*)> release;
  /// What to throw when there is none left even after all unused blocks went back.
  std::function<void(std::size_t, const MemoryUse&)> fail;
};
MemorySource host_memory();

/// Keeps freed blocks for the next request of the same size: a training step asks for the same sizes in the
/// same order, and fresh memory (page faults, or the synchronisation of cudaMalloc) would cost more than most
/// operations that fill it. Blocks are 64-byte aligned. Thread-safe.
class Arena : public std::enable_shared_from_this<Arena> {
 public:
  explicit Arena(MemorySource source = host_memory()) : source_(std::move(source)) {}
  ~Arena();
  /// Uninitialised memory; the storage keeps the arena alive and gives the block back.
  std::shared_ptr<Storage> allocate(std::size_t bytes);
  MemoryUse use() const;

 private:
  void* fresh_block(std::size_t size);
  void release_unused();
  void release(void* block, std::size_t size);

  MemorySource source_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>> free_;  // by rounded size
  MemoryUse use_;
};

}  // namespace quaver
