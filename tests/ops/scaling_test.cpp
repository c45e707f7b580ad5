/// Delayed scaling's update rule on every backend: the contract's vectors, and each easy mistake as a named
/// test.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <limits>

#include "quaver/backend.h"
#include "quaver/fp8_format.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

class ScalingTest : public ::testing::TestWithParam<std::string> {
 protected:
  std::shared_ptr<Backend> backend = testing::make_test_backend(GetParam());

  ScalingSlot slot(std::vector<float> history, float scale = 1.0f) {
    const auto length = static_cast<std::int64_t>(history.size());
    return {upload(*backend, std::vector<float>{scale}, {1}), upload(*backend, history, {length}), {}, {}};
  }
  void stage(const ScalingSlot& slot, float amax) { backend->fill(slot.amax_history.slice(0, 1), amax); }
  void update(const ScalingSlot& slot, AmaxCompute algo = AmaxCompute::max, int margin = 0,
              DType format = DType::e4m3) {
    const ScaleUpdate one{slot, fp8_max(format), margin, algo};
    backend->update_scales({&one, 1});
  }
  float scale(const ScalingSlot& slot) { return download(*backend, slot.scale)[0]; }
  std::vector<float> history(const ScalingSlot& slot) { return download(*backend, slot.amax_history); }

  /// The scale after one update with this staged amax.
  float scale_after(float amax, int margin, DType format) {
    const ScalingSlot s = slot({amax, 0, 0});
    update(s, AmaxCompute::max, margin, format);
    return scale(s);
  }
};

TEST_P(ScalingTest, TheContractsSequenceOfFourteenUpdates) {
  const ScalingSlot s = slot({0, 0, 0, 0});
  const float amaxes[] = {2, 8, 4, 0, 1, 1, 1, kInfinity, 1, 1, 1, 1, kNan, 1};
  const float scales[] = {224, 56, 56, 56, 56, 56, 112, 112, 112, 112, 112, 448, 448, 448};
  for (int step = 0; step < 14; ++step) {
    stage(s, amaxes[step]);
    update(s);
    EXPECT_EQ(scale(s), scales[step]) << "step " << step << ", amax " << amaxes[step];
  }
}

TEST_P(ScalingTest, TheContractsSingleUpdates) {
  EXPECT_EQ(scale_after(3, 2, DType::e4m3), 37.3333321f);
  EXPECT_EQ(scale_after(3, 0, DType::e5m2), 19114.666f);
  EXPECT_EQ(scale_after(448, 0, DType::e4m3), 1.0f);
  EXPECT_EQ(scale_after(1e-37f, 0, DType::e4m3), FLT_MAX);
  EXPECT_EQ(scale_after(1e38f, 0, DType::e4m3), 4.48000025e-36f);
}

TEST_P(ScalingTest, MostRecentUsesTheLastAmaxOnly) {
  const ScalingSlot s = slot({2, 100, 200, 300});
  update(s, AmaxCompute::most_recent);
  EXPECT_EQ(scale(s), 224.0f);
  stage(s, kInfinity);
  update(s, AmaxCompute::most_recent);
  EXPECT_EQ(scale(s), 224.0f) << "an infinite amax leaves the scale";
  stage(s, kNan);
  update(s, AmaxCompute::most_recent);
  EXPECT_EQ(scale(s), 224.0f) << "a NaN amax leaves the scale";
}

TEST_P(ScalingTest, TakesInWhatWasCastAhead) {
  const auto counts = [&](const Tensor& counters) {
    std::vector<std::int64_t> values(kCastCounters);
    backend->copy_to_host(counters, values.data());
    return values;
  };
  for (const float staged : {0.0f, 2.0f, 16.0f}) {
    ScalingSlot s = slot({staged, 1, 2, 3});
    s.counters = backend->allocate(DType::i64, {kCastCounters});
    s.ahead_counters = backend->allocate(DType::i64, {kCastCounters});
    s.ahead_amax = upload(*backend, std::vector<float>{8}, {1});
    backend->fill(s.counters, 5);
    backend->fill(s.ahead_counters, 7);
    update(s);
    const float amax = std::max(staged, 8.0f);
    EXPECT_EQ(history(s), (std::vector<float>{0, 2, 3, amax}));
    EXPECT_EQ(scale(s), 448 / amax);
    EXPECT_EQ(download(*backend, s.ahead_amax)[0], 0);
    EXPECT_EQ(counts(s.counters), std::vector<std::int64_t>(kCastCounters, 12));
    EXPECT_EQ(counts(s.ahead_counters), std::vector<std::int64_t>(kCastCounters, 0));
    update(s);
    EXPECT_EQ(history(s), (std::vector<float>{0, 2, 3, amax})) << "taken in once";
  }
}

TEST_P(ScalingTest, MistakeRollingOnAmaxZero) {
  const ScalingSlot s = slot({0, 1, 2, 3}, 5);
  update(s);
  EXPECT_EQ(history(s), (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(scale(s), 5.0f);
}

TEST_P(ScalingTest, MistakeDroppingTheOldestBeforeTheMaximum) {
  const ScalingSlot s = slot({1, 8, 2, 3});
  update(s);
  EXPECT_EQ(scale(s), 56.0f) << "the oldest entry, 8, counts once more";
  EXPECT_EQ(history(s), (std::vector<float>{0, 2, 3, 1}));
}

TEST_P(ScalingTest, MistakePowerOfTwoRounding) {
  EXPECT_EQ(scale_after(3, 0, DType::e4m3), 448.0f / 3.0f);
}

TEST_P(ScalingTest, MistakeMarginWithTheWrongSign) {
  EXPECT_EQ(scale_after(448, 3, DType::e4m3), 0.125f);
}

TEST_P(ScalingTest, AHistoryOfOneEntry) {
  const ScalingSlot s = slot({2});
  update(s);
  EXPECT_EQ(scale(s), 224.0f);
  EXPECT_EQ(history(s), std::vector<float>{0});
}

TEST_P(ScalingTest, ManySlotsInOneCall) {
  const ScalingSlot a = slot({2, 0, 0}), b = slot({0, 0, 7}, 3), c = slot({57344, 1, 1});
  const ScaleUpdate updates[] = {
      {a, 448, 0, AmaxCompute::max}, {b, 448, 0, AmaxCompute::max}, {c, 57344, 0, AmaxCompute::most_recent}};
  backend->update_scales(updates);
  EXPECT_EQ(scale(a), 224.0f);
  EXPECT_EQ(scale(b), 3.0f);
  EXPECT_EQ(scale(c), 1.0f);
}

/// A cast of some values, and everything it leaves behind.
class CastTest : public ScalingTest {
 protected:
  struct Result {
    std::vector<float> values;
    float scale_inv, amax;
    std::vector<std::int64_t> counters;
  };
  Result cast(const std::vector<float>& x, DType format, float scale, float staged = 0) {
    const auto count = static_cast<std::int64_t>(x.size());
    Output output;
    output.quantized = {backend->allocate(format, {1, count}), {}, backend->allocate(DType::f32, {1})};
    output.quantizer = {format, upload(*backend, std::vector<float>{scale}, {1}),
                        upload(*backend, std::vector<float>{staged}, {1}),
                        backend->allocate(DType::i64, {kCastCounters})};
    backend->fill(output.quantizer.counters, 0);
    backend->cast(upload(*backend, x, {1, count}), output);
    Result result{download(*backend, output.quantized.bytes),
                  download(*backend, output.quantized.scale_inv)[0],
                  download(*backend, output.quantizer.amax)[0], std::vector<std::int64_t>(kCastCounters)};
    backend->copy_to_host(output.quantizer.counters, result.counters.data());
    return result;
  }
};

TEST_P(CastTest, MistakeZeroingTheStagingEntryAtEachCast) {
  EXPECT_EQ(cast({1, -2}, DType::e4m3, 1, 5).amax, 5.0f);
}

TEST_P(CastTest, MistakeTakingAmaxAfterScaling) {
  EXPECT_EQ(cast({1, -2}, DType::e4m3, 16).amax, 2.0f);
}

TEST_P(CastTest, MistakeEncodingXTimesScaleInv) {
  const Result result = cast({1.5f}, DType::e4m3, 4);
  EXPECT_EQ(result.values[0], 6.0f);
  EXPECT_EQ(result.scale_inv, 0.25f);
}

TEST_P(CastTest, MistakeFlushingASubnormalScaleInv) {
  EXPECT_EQ(cast({1e-38f}, DType::e4m3, FLT_MAX).scale_inv, 2.93873588e-39f);
}

TEST_P(CastTest, MistakeNanOrInfinityInTheAmax) {
  const Result result = cast({1, kNan, -3}, DType::e4m3, 1);
  EXPECT_EQ(result.amax, 3.0f) << "NaN does not raise amax";
  EXPECT_TRUE(std::isnan(result.values[1]));
  EXPECT_EQ(cast({1, -kInfinity}, DType::e5m2, 1).amax, kInfinity);
  EXPECT_EQ(cast({1, -kInfinity}, DType::e5m2, 1).values[1], -57344.0f);
}

TEST_P(CastTest, CountsWhatItMeets) {
  const std::vector<float> x{0.0f, -0.0f, 1.0f, 448.0f, 448.5f, -1e9f, kInfinity, 1e-9f, -1e-9f, kNan};
  EXPECT_EQ(cast(x, DType::e4m3, 1).counters, (std::vector<std::int64_t>{10, 3, 2, 1, 1, 2}));
}

INSTANTIATE_TEST_SUITE_P(Backends, ScalingTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });
INSTANTIATE_TEST_SUITE_P(Backends, CastTest, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
