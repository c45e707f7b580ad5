/// A caching allocator of host or device memory.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ops/memory_chunks.h"
#include "quaver/backend.h"
#include "quaver/tensor.h"

namespace quaver {

/// Where an arena gets its blocks: at least 64-byte aligned.
struct MemorySource {
  Device device = Device::host;
  /// 0: blocks are kept by size, the one freed last is taken first (it may still be in a cache). Else large blocks are
  /// cut from chunks of at least so many bytes, so that all sizes share the memory, and addresses repeat with a repeated
  /// sequence of requests.
  std::size_t chunk_bytes = 0;
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
  class Block;

  bool is_cut(std::size_t size) const;
  void* free_block(std::size_t size);
  void* fresh_block(std::size_t size);
  void* from_source(std::size_t size);
  void release_unused();
  void release(void* block, std::size_t size);

  MemorySource source_;
  mutable std::mutex mutex_;
  std::map<std::size_t, std::vector<void*>>
      free_;  // by rounded size; a heap, the lowest in front, where there are chunks
  MemoryChunks chunks_;
  MemoryUse use_;
};

}  // namespace quaver
