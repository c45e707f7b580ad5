/// All inputs there are: the cpu backend's casts against the scalar encoder of fp8_format.h.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <vector>

#include "base/threads.h"
#include "ops/pointwise_support.h"
#include "quaver/fp8_format.h"

namespace quaver::testing {
namespace {

constexpr std::int64_t kChunk = std::int64_t{1} << 16;

/// A cast at scale 1 on a backend of its own, so that several run at once.
class Caster {
 public:
  Caster(Backend& backend, DType from, DType format)
      : backend_(backend), x(backend.allocate(from, {1, kChunk})), scale_(backend.allocate(DType::f32, {1})) {
    output_.quantized = {backend.allocate(format, {1, kChunk}), Tensor(), backend.allocate(DType::f32, {1})};
    output_.quantizer = {format, scale_, Tensor(), Tensor()};
    backend.fill(scale_, 1.0);
  }
  const std::uint8_t* cast() {
    backend_.cast(x, output_);
    return output_.quantized.bytes.data<std::uint8_t>();
  }

 private:
  Backend& backend_;

 public:
  const Tensor x;

 private:
  Tensor scale_;
  Output output_;
};

/// Differences in the FP32 numbers whose bits are [begin, begin + kChunk).
std::int64_t wrong_f32(Caster& caster, DType format, std::uint32_t begin) {
  auto* bits = caster.x.data<std::uint32_t>();
  for (std::int64_t i = 0; i < kChunk; ++i) bits[i] = begin + static_cast<std::uint32_t>(i);
  const std::uint8_t* found = caster.cast();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < kChunk; ++i)
    wrong += found[i] != fp8_encode(format, std::bit_cast<float>(bits[i]));
  return wrong;
}

void check_every_f32(DType format) {
  constexpr std::int64_t kChunksPerItem = 64;
  constexpr std::int64_t kItems = (std::int64_t{1} << 32) / (kChunk * kChunksPerItem);
  std::vector<std::int64_t> wrong(kItems);
  Threads().for_each(kItems, [&](std::int64_t item) {
    const auto backend = make_backend("cpu", 1);
    Caster caster(*backend, DType::f32, format);
    for (std::int64_t chunk = 0; chunk < kChunksPerItem; ++chunk) {
      wrong[item] +=
          wrong_f32(caster, format, static_cast<std::uint32_t>((item * kChunksPerItem + chunk) * kChunk));
    }
  });
  for (std::int64_t item = 0; item < kItems; ++item)
    EXPECT_EQ(wrong[item], 0) << "block " << item << " of " << kItems;
}

void check_every_bf16(DType format) {
  for (const auto& backend : cpu_backends()) {
    Caster caster(*backend, DType::bf16, format);
    for (std::int64_t i = 0; i < kChunk; ++i) caster.x.data<bf16>()[i].bits = static_cast<std::uint16_t>(i);
    const std::uint8_t* found = caster.cast();
    for (std::int64_t i = 0; i < kChunk; ++i) {
      ASSERT_EQ(found[i], fp8_encode(format, to_float(caster.x.data<bf16>()[i])))
          << backend->describe() << ", bits " << i;
    }
  }
}

TEST(SlowExhaustiveCast, EveryF32NumberAsE4M3AtTheLevelInUse) {
  check_every_f32(DType::e4m3);
}
TEST(SlowExhaustiveCast, EveryF32NumberAsE5M2AtTheLevelInUse) {
  check_every_f32(DType::e5m2);
}
TEST(ExhaustiveCast, EveryBf16NumberAsE4M3AtEveryLevel) {
  check_every_bf16(DType::e4m3);
}
TEST(ExhaustiveCast, EveryBf16NumberAsE5M2AtEveryLevel) {
  check_every_bf16(DType::e5m2);
}

}  // namespace
}  // namespace quaver::testing
