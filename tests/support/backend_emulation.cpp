#include <cstring>

#include "ops/cuda/device_backend.h"
#include "ops/cuda/product.h"
#include "support/emulated_backend.h"

namespace quaver::testing {
namespace {

class EmulatedRuntime final : public cuda::DeviceRuntime {
 public:
  std::string describe() const override { return "cuda (emulated)"; }
  cuda::Stream stream() const override { return nullptr; }
  MemorySource memory() override { return host_memory(); }
  bool needs_transposed_fp8() const override { return true; }
  bool has_warpgroup_products() const override {
    return false;
  }  // their tiles are large: slow for small models
  void copy_from_host(const void* source, void* destination, std::size_t bytes) override {
    std::memcpy(destination, source, bytes);
  }
  void copy_to_host(const void* source, void* destination, std::size_t bytes) override {
    std::memcpy(destination, source, bytes);
  }
  void copy_rows(const void* source, std::size_t source_pitch, void* destination,
                 std::size_t destination_pitch, std::size_t width, std::size_t rows) override {
    const auto* from = static_cast<const char*>(source);
    auto* to = static_cast<char*>(destination);
    for (std::size_t row = 0; row < rows; ++row)
      std::memcpy(to + row * destination_pitch, from + row * source_pitch, width);
  }
};

/// Refuses what cuBLASLt refuses on the most demanding chips, and multiplies with the plain kernel.
class StrictLibrary final : public cuda::MatrixLibrary {
 public:
  bool multiply(const cuda::Product& product, Backend&) override {
    if (is_fp8(product.left.dtype) && !takes_fp8(product)) return false;
    if (product.left.dtype == DType::f32 && product.out_dtype != DType::f32) return false;
    launch_plain_product(product, nullptr, nullptr);
    return true;
  }

 private:
  static bool fits(const cuda::Factor& factor) {
    return !factor.swapped && factor.stride % 16 == 0 &&
           reinterpret_cast<std::uintptr_t>(factor.data) % 16 == 0;
  }
  static bool takes_fp8(const cuda::Product& product) {
    const GemmSize& size = product.size;
    return size.m % 16 == 0 && size.n % 16 == 0 && size.k % 16 == 0 && fits(product.left) &&
           fits(product.right);
  }
};

}  // namespace

std::shared_ptr<Backend> make_emulated_backend(bool plain_products) {
  return std::make_shared<cuda::DeviceBackend>(std::make_unique<EmulatedRuntime>(),
                                               plain_products ? nullptr : std::make_unique<StrictLibrary>());
}

}  // namespace quaver::testing
