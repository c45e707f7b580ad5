/// Gradients that their producers cast, against the same gradients cast by a pass of their own: steps of training leave the same
/// bits.
#include <gtest/gtest.h>

#include "ops/timed_backend.h"
#include "support/test_backends.h"
#include "train/fp8_state.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

/// Casts what backward passes of norms, gates and heads would cast themselves.
class SeparateCasts : public TimedBackend {
 public:
  explicit SeparateCasts(std::shared_ptr<Backend> inner) : TimedBackend(std::move(inner), 1) {}
  int casts = 0;

  void rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& rstd,
                         bool accumulate_dx, const Output& dx, const Tensor& dgain) override {
    separate(dx, x.shape(), x.dtype(), [&](const Output& values) {
      TimedBackend::rms_norm_backward(dy, x, gain, rstd, accumulate_dx, values, dgain);
    });
  }
  void layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& gain, const Tensor& mean,
                           const Tensor& rstd, bool accumulate_dx, const Output& dx, const Tensor& dgain,
                           const Tensor& dbias) override {
    separate(dx, x.shape(), x.dtype(), [&](const Output& values) {
      TimedBackend::layer_norm_backward(dy, x, gain, mean, rstd, accumulate_dx, values, dgain, dbias);
    });
  }
  void gate_backward(GateActivation kind, const Tensor& dy, const Tensor& o, const Tensor& g,
                     const Tensor& d_o, const Output& dg, const Output& y) override {
    separate(dg, g.shape(), g.dtype(),
             [&](const Output& values) { TimedBackend::gate_backward(kind, dy, o, g, d_o, values, y); });
  }
  void transform_heads_backward(const HeadTransform& transform, const Tensor& dout, const Tensor& x,
                                const Tensor& positions, const Output& dx, const Tensor& dgain) override {
    separate(dx, dout.shape(), dout.dtype(), [&](const Output& values) {
      TimedBackend::transform_heads_backward(transform, dout, x, positions, values, dgain);
    });
  }

 private:
  template <typename Produce>
  void separate(const Output& out, const Shape& shape, DType dtype, const Produce& produce) {
    if (!out.quantized.defined()) return produce(out);
    const Tensor values = out.values ? out.values : allocate(dtype, shape);
    produce({values, {}, {}});
    cast(values, {{}, out.quantized, out.quantizer});
    ++casts;
  }
};

/// Everything that steps of training leave behind, as bits.
std::vector<std::vector<std::byte>> trained(const std::shared_ptr<Backend>& backend,
                                            const RunConfig& config) {
  Trainer trainer(backend, config);
  const BatchSource source = training_batches(config);
  for (std::int64_t step = 0; step < 3; ++step) {
    const HostBatch batch = source.at(step);
    trainer.step(1e-3f, std::span(&batch, 1));
  }
  std::vector<std::vector<std::byte>> state;
  for (const auto& array : to_safetensors(capture_fp8_state(*backend, trainer.model())).arrays)
    state.push_back(array.bytes);
  for (const AdamW::Entry& entry : trainer.optimizer().entries()) {
    const std::vector<float> weight = download(*backend, entry.parameter->value);
    const auto bytes = std::as_bytes(std::span(weight));
    state.emplace_back(bytes.begin(), bytes.end());
  }
  return state;
}

class FusedCasts : public ::testing::TestWithParam<std::string> {
 protected:
  FusedCasts() {
    write_text(folder);
    config = micro_config(folder);
    config.precision = Precision::fp8;
    config.model.context = 16;
    config.train.batch = 1;
  }
  /// `casts`: how many a step leaves to producers.
  void expect_same_bits(int casts) {
    const auto separate = std::make_shared<SeparateCasts>(testing::make_test_backend(GetParam()));
    EXPECT_EQ(trained(separate, config) == trained(testing::make_test_backend(GetParam()), config), true);
    EXPECT_EQ(separate->casts, 3 * casts);
  }
  TemporaryFolder folder;
  RunConfig config;
};

std::vector<std::string> all_but_the_emulation() {
  std::vector<std::string> backends = testing::test_backends();
  std::erase(backends, "emulation");
  return backends;
}
INSTANTIATE_TEST_SUITE_P(Backends, FusedCasts, ::testing::ValuesIn(all_but_the_emulation()));
// Minutes under the sanitizers, where the tests of operations have seen every one of these kernels.
INSTANTIATE_TEST_SUITE_P(SlowBackends, FusedCasts, ::testing::Values("emulation"));

// A layer's down_proj and out_proj, and two parts of qkv_proj: the gate's, and that of the heads.
TEST_P(FusedCasts, OfPackedProjections) {
  expect_same_bits(8);
  config.model.gate = GateKind::headwise;
  config.model.qkv_bias = config.model.out_bias = config.model.mlp_bias = true;
  config.model.norm = NormKind::layer;
  expect_same_bits(8);
}

// q_proj, k_proj and gate_proj; v_proj's gradient is attention's own.
TEST_P(FusedCasts, OfSeparateProjections) {
  config.model.packed_qkv = false;
  config.model.qk_norm = QkNorm::post_rope;
  expect_same_bits(10);
}

// A packed gradient of which attention or a norm of heads writes a part is cast at once.
TEST_P(FusedCasts, OfNormsAlone) {
  config.model.qk_norm = QkNorm::pre_rope;
  expect_same_bits(4);
  config.model.qk_norm = QkNorm::none;
  config.model.position = PositionKind::learned;
  expect_same_bits(4);
}

// Nothing is known yet of a block that runs forward again when the gradient of its output is written.
TEST_P(FusedCasts, OfBlocksThatRunAgain) {
  config.model.recompute = Recompute::block;
  expect_same_bits(6);
  config.model.recompute = Recompute::attention;
  expect_same_bits(6);
}

// Other recipes cast for themselves.
TEST_P(FusedCasts, OfNothingUnderCurrentScaling) {
  config.fp8.recipe = "current";
  expect_same_bits(0);
}

}  // namespace
}  // namespace quaver
