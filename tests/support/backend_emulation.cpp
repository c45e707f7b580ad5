#include <cstring>

#include "ops/cuda/chip_types.h"
#include "ops/cuda/device_backend.h"
#include "ops/cuda/product.h"
#include "support/emulated_backend.h"

namespace quaver::testing {
namespace {

/// Repeats what was listed when it was recorded, with the arguments of then.
class EmulatedRecording final : public cuda::Recording {
 public:
  explicit EmulatedRecording(cuda::WorkList list) : list_(std::move(list)) {}
  void replay() override { list_.start(); }

 private:
  cuda::WorkList list_;
};

class EmulatedRuntime final : public cuda::DeviceRuntime {
 public:
  EmulatedRuntime(bool records, bool needs_transposed_fp8)
      : records_(records), needs_transposed_fp8_(needs_transposed_fp8) {}
  std::string describe() const override { return "cuda (emulated)"; }
  cuda::DeviceStream stream() const override { return nullptr; }
  MemorySource memory() override {
    MemorySource source = quaver::host_memory();
    source.chunk_bytes = std::size_t{1} << 20;
    return source;
  }
  MemorySource host_memory() override { return quaver::host_memory(); }
  bool needs_transposed_fp8() const override { return needs_transposed_fp8_; }
  cuda::ChipSize chip_size() const override { return {2, 227 << 10}; }
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
  cuda::Recorded record(const cuda::WorkList& list) override {
    if (!records_) return {nullptr, "this device does not record"};
    return {std::make_unique<EmulatedRecording>(list), ""};
  }

 private:
  bool records_, needs_transposed_fp8_;
};

bool takes_any_layout(std::optional<int> chip) {
  return chip && cuda::takes_any_fp8_layout(*chip);
}

/// Refuses what cuBLASLt refuses on the chip, or on the most demanding ones, and multiplies with the plain kernel.
class StrictLibrary final : public cuda::MatrixLibrary {
 public:
  explicit StrictLibrary(std::optional<int> chip) : chip_(chip) {}
  std::string why_no_blocks(cuda::FactorScales scales) const override {
    constexpr std::size_t kVersion = 130100;
    if (!chip_) return {};
    return scales == cuda::FactorScales::mx ? cuda::why_no_mx_products(*chip_, kVersion)
                                            : cuda::why_no_block_products(*chip_, kVersion);
  }
  std::optional<bool> can_multiply(const cuda::Product& product) const override {
    if (is_fp8(product.left.dtype) && !takes_fp8(product)) return false;
    return product.left.dtype != DType::f32 || product.out_dtype == DType::f32;
  }
  bool multiply(const cuda::Product& product, Backend&) override {
    if (!*can_multiply(product)) return false;
    if (!takes_unit_scales(product)) {
      launch_plain_product(product, nullptr, nullptr);
      return true;
    }
    const std::vector<std::uint8_t> units(static_cast<std::size_t>(cuda::unit_scale_bytes(product)), 0x7F);
    float alpha = 0;
    cuda::start_scale_product(product, &alpha, nullptr);
    launch_plain_product(cuda::with_unit_scales(product, units.data()), nullptr, nullptr, &alpha);
    return true;
  }
  std::string describe(const cuda::Product& product) const override {
    return "emulated library" + describe_blocks(product) +
           (takes_unit_scales(product) ? ", in blocks of 32 with scales of 1" : "");
  }

 private:
  bool fits(const cuda::Factor& factor) const {
    return (!factor.swapped || takes_any_layout(chip_)) && factor.stride % 16 == 0 &&
           reinterpret_cast<std::uintptr_t>(factor.data) % 16 == 0;
  }
  bool takes_unit_scales(const cuda::Product& product) const {
    return chip_ && cuda::takes_unit_scales(*chip_, product);
  }
  bool takes_fp8(const cuda::Product& product) const {
    const GemmSize& size = product.size;
    if (is_in_blocks(product) && !(suits_library(product) && size.k % contraction_block(product) == 0))
      return false;
    return size.m % 16 == 0 && size.n % 16 == 0 && size.k % 16 == 0 && fits(product.left) &&
           fits(product.right);
  }

  std::optional<int> chip_;
};

/// Takes every call that suits, and computes it with the kernels of our own.
class OwnAttentionLibrary final : public cuda::AttentionLibrary {
 public:
  std::string describe() const override { return "emulated library"; }
  std::optional<std::int64_t> workspace(const cuda::AttentionCall& call,
                                        const cuda::AttentionGradients* gradients) override {
    return gradients ? cuda::attention_workspace(call) : 0;
  }
  void run(const cuda::AttentionCall& call, const cuda::AttentionGradients* gradients,
           void* memory) override {
    const AttentionShape& shape = call.shape;
    std::vector<float> sums(static_cast<std::size_t>(shape.batch * shape.query_len * shape.heads));
    // Calls f with each sum and its place in the packed [batch, heads, query_len].
    const auto for_sums = [&](const auto& f) {
      for (std::int64_t i = 0; call.lse && i < static_cast<std::int64_t>(sums.size()); ++i) {
        const std::int64_t row = i / shape.heads, sequence = row / shape.query_len;
        f(sums[static_cast<std::size_t>(i)],
          call.lse[(sequence * shape.heads + i % shape.heads) * shape.query_len + row % shape.query_len]);
      }
    };
    cuda::AttentionCall by_rows = call;
    by_rows.lse = call.lse ? sums.data() : nullptr;
    by_rows.lse_stride = shape.heads;
    if (!gradients) {
      cuda::launch_attention(by_rows, nullptr);
      return for_sums([](float sum, float& packed) { packed = sum; });
    }
    for_sums([](float& sum, float packed) { sum = packed; });
    cuda::AttentionGradients with_memory = *gradients;
    with_memory.workspace = memory;
    cuda::launch_attention_backward(by_rows, with_memory, nullptr);
  }
};

}  // namespace

std::shared_ptr<Backend> make_emulated_backend(bool plain_products, bool records, std::optional<int> chip) {
  return std::make_shared<cuda::DeviceBackend>(
      std::make_unique<EmulatedRuntime>(records, !takes_any_layout(chip)),
      plain_products ? nullptr : std::make_unique<StrictLibrary>(chip),
      std::make_unique<OwnAttentionLibrary>());
}

}  // namespace quaver::testing
