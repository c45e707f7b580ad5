/// The feed-forward with gate and up in one Linear, against the same weights in two.
#include "nn/feed_forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/random.h"
#include "quaver/scaling.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

using Floats = std::vector<float>;

constexpr std::int64_t kRows = 24, kWidth = 32, kHidden = 48;

Floats normals(std::int64_t count, std::uint64_t stream, float size) {
  const Random random(11, stream);
  Floats values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(size * random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

Floats joined(Floats first, const Floats& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

class Collect : public ModuleVisitor {
 public:
  void parameter(const std::string& name, Parameter& parameter) override { parameters[name] = &parameter; }
  void linear(const std::string& name, Linear& linear) override { linears[name] = &linear; }
  std::map<std::string, Parameter*> parameters;
  std::map<std::string, Linear*> linears;
};

/// What a slot has staged and counted.
struct Slot {
  float amax = 0;
  std::vector<std::int64_t> counters;
};

/// A feed-forward after one forward and backward of the same input and weights, whatever its packing.
struct Step {
  Step(const std::shared_ptr<Backend>& b, Activation mlp, bool packed, DType dtype, bool fp8) : backend(*b) {
    ModelConfig config;
    config.width = kWidth;
    config.ffn_width = kHidden;
    config.mlp = mlp;
    config.packed_gate_up = packed;
    config.mlp_bias = true;
    FeedForward module(backend, config);
    module.visit("", found);
    fill();

    Context context(backend, dtype);
    FeedForward::Saved saved;
    {
      const auto scope = fp8 ? std::make_unique<Autocast>(context, true) : nullptr;
      const Tensor values = upload(backend, normals(kRows * kWidth, 1, 1), {kRows, kWidth}, dtype);
      Output x = module.make_input(context, kRows);
      if (x.values) backend.copy(values, x.values);
      if (x.quantized.defined()) backend.cast(values, {{}, x.quantized, x.quantizer});
      y = download(backend, module.forward(context, x, &saved));
    }
    const BackwardPass pass(context);
    const Tensor dy = upload(backend, normals(kRows * kWidth, 2, 1), {kRows, kWidth}, dtype);
    const Tensor dx_values = backend.allocate(dtype, {kRows, kWidth});
    module.backward(context, saved, {dy, {}, {}}, dx_values);
    dx = download(backend, dx_values);
    for (const auto& [name, linear] : found.linears) {
      const auto& slot = linear->fp8().grad_output;
      if (slot) gradient_slots[name] = {download(backend, slot->amax_history).front(), counters(*slot)};
    }
    for (const auto& [name, parameter] : found.parameters)
      gradients[name] = download(backend, parameter->gradient);
    found = {};
  }

  Backend& backend;
  Floats y, dx;
  std::map<std::string, Floats> gradients;
  std::map<std::string, Slot> gradient_slots;
  Collect found;

 private:
  std::vector<std::int64_t> counters(const ScalingSlot& slot) {
    std::vector<std::int64_t> values(kCastCounters);
    backend.copy_to_host(slot.counters, values.data());
    return values;
  }
  void fill() {
    const Floats gate = normals(kHidden * kWidth, 3, 0.3f), up = normals(kHidden * kWidth, 4, 0.1f);
    const Floats gate_bias = normals(kHidden, 5, 0.3f), up_bias = normals(kHidden, 6, 0.3f);
    const std::map<std::string, Floats> values{{"gate_up_proj.weight", joined(gate, up)},
                                               {"gate_up_proj.bias", joined(gate_bias, up_bias)},
                                               {"gate_proj.weight", gate},
                                               {"gate_proj.bias", gate_bias},
                                               {"up_proj.weight", up},
                                               {"up_proj.bias", up_bias},
                                               {"down_proj.weight", normals(kWidth * kHidden, 7, 0.2f)},
                                               {"down_proj.bias", normals(kWidth, 8, 0.2f)}};
    for (const auto& [name, parameter] : found.parameters) {
      backend.copy_from_host(values.at(name).data(), parameter->value);
      ++parameter->version;
    }
  }
};

void expect_near(const Floats& found, const Floats& expected, float bound, const char* what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  float largest = 0;
  for (const float value : expected) largest = std::max(largest, std::abs(value));
  ASSERT_GT(largest, 0) << what;
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_NEAR(found[i], expected[i], bound * largest) << what << " " << i;
}

class FeedForwardTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());

  /// `bound`: of y, dx and gradients, relative to the largest.
  void expect_the_same(DType dtype, bool fp8, float bound) {
    for (const Activation mlp : {Activation::swiglu, Activation::geglu}) {
      const Step packed(backend, mlp, true, dtype, fp8), separate(backend, mlp, false, dtype, fp8);
      expect_near(packed.y, separate.y, bound, "y");
      expect_near(packed.dx, separate.dx, bound, "dx");
      for (const char* kind : {".weight", ".bias"}) {
        const auto of = [&](const char* name) { return separate.gradients.at(std::string(name) + kind); };
        expect_near(packed.gradients.at(std::string("gate_up_proj") + kind),
                    joined(of("gate_proj"), of("up_proj")), bound, kind);
        expect_near(packed.gradients.at(std::string("down_proj") + kind), of("down_proj"), bound, kind);
      }
    }
  }
};

// Nothing is rounded below FP32; dx is one sum of 96 terms or two of 48.
TEST_P(FeedForwardTest, PackedComputesTheSameInFp32) {
  expect_the_same(DType::f32, false, 1e-5f);
}

// dx: one rounding to BF16, or two.
TEST_P(FeedForwardTest, PackedComputesTheSameInBf16) {
  expect_the_same(DType::bf16, false, 0x1p-7f);
}

// In the first step all scales are 1, so that one scale for both makes no difference yet.
TEST_P(FeedForwardTest, PackedComputesTheSameInFp8) {
  expect_the_same(DType::bf16, true, 0x1p-7f);
}

// Of the parts' gradients: one maximum, and what was counted of both.
TEST_P(FeedForwardTest, APackedGradientHasOneSlot) {
  const Step packed(backend, Activation::swiglu, true, DType::bf16, true),
      separate(backend, Activation::swiglu, false, DType::bf16, true);
  const Slot &both = packed.gradient_slots.at("gate_up_proj"),
             &gate = separate.gradient_slots.at("gate_proj"), &up = separate.gradient_slots.at("up_proj");
  ASSERT_NE(gate.amax, up.amax);
  EXPECT_NEAR(both.amax, std::max(gate.amax, up.amax), both.amax / 128);
  EXPECT_EQ(both.counters[kCastElements], 2 * kRows * kHidden);
  if (GetParam() == "cuda") return;  // its library may add in another order for another size
  EXPECT_EQ(both.amax, std::max(gate.amax, up.amax));
  for (int i = 0; i < kCastCounters; ++i) EXPECT_EQ(both.counters[i], gate.counters[i] + up.counters[i]) << i;
}

// gelu has no gate: packed or not, it is the same module.
TEST_P(FeedForwardTest, WithoutGateThereIsNothingToPack) {
  const Step packed(backend, Activation::gelu, true, DType::bf16, true),
      separate(backend, Activation::gelu, false, DType::bf16, true);
  EXPECT_EQ(packed.gradients, separate.gradients);
  EXPECT_TRUE(packed.gradients.contains("up_proj.weight"));
}

INSTANTIATE_TEST_SUITE_P(Backends, FeedForwardTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
