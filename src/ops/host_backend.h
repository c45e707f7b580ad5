/// What backends that compute on the host share: the arena and copies.
#pragma once

#include <memory>

#include "quaver/backend.h"

namespace quaver {

class HostArena;

class HostBackend : public Backend {
 public:
  HostBackend();
  ~HostBackend() override;
  Device device() const override { return Device::host; }
  bool needs_transposed_fp8() const override { return false; }  // packing reads either layout
  Tensor allocate(DType dtype, Shape shape) override;
  void copy_from_host(const void* source, const Tensor& destination) override;
  void copy_to_host(const Tensor& source, void* destination) override;
  MemoryUse memory_use() const override;

 private:
  std::shared_ptr<HostArena> arena_;  // storages keep it alive
};

}  // namespace quaver
