/// What backends that compute on the host share: the arena, copies, and what is too small to be worth a kernel.
#pragma once

#include <memory>

#include "ops/arena.h"
#include "quaver/backend.h"

namespace quaver {

class HostBackend : public Backend {
 public:
  explicit HostBackend(MemorySource memory = host_memory());
  Device device() const override { return Device::host; }
  bool needs_transposed_fp8() const override { return false; }  // packing reads either layout
  std::string why_no_cast(const OperandCast&) const override { return {}; }
  bool mixes_operands() const override { return true; }
  Tensor allocate(DType dtype, Shape shape) override;
  void copy_from_host(const void* source, const Tensor& destination) override;
  void copy_to_host(const Tensor& source, void* destination) override;
  void gather(std::span<const Tensor> sources, const Tensor& destination) override;
  void refuse_non_finite_casts(const Tensor& before, const Tensor& after, const Tensor& norm) override;
  void refuse_non_finite(const Tensor& values, const Tensor& norm) override;
  MemoryUse memory_use() const override;

 private:
  std::shared_ptr<Arena> arena_;  // storages keep it alive
};

}  // namespace quaver
