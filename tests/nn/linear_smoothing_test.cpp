/// Linear::smooth_input: one large feature does not take the whole FP8 range, and nothing but roundings changes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/linear.h"
#include "support/errors.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

using Floats = std::vector<float>;

constexpr std::int64_t kRows = 33, kIn = 35, kOut = 33, kLarge = 7;  // kLarge: the feature that is made large
const DelayedScaling kDelayed{.amax_history_len = 2};

std::vector<Recipe> recipes() {
  return {kDelayed, CurrentScaling{}, CurrentScaling{Fp8Format::e4m3}};
}

float rounded(double x) {
  return to_float(to_bf16(static_cast<float>(x)));
}

/// Small integers other than 0: exact in every type here.
Floats integers(std::int64_t count, std::uint64_t stream, std::uint64_t largest) {
  const Random random(6, stream);
  Floats values;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto draw = static_cast<float>(1 + random.below(static_cast<std::uint64_t>(i), largest));
    values.push_back(random.below(static_cast<std::uint64_t>(i) + 1000000, 2) == 0 ? draw : -draw);
  }
  return values;
}

/// A product like SwiGLU's: many small numbers beside a few large ones.
Floats products(std::uint64_t stream) {
  const Random random(7, stream);
  Floats values;
  for (std::uint64_t i = 0; i < static_cast<std::uint64_t>(kRows * kIn); ++i) {
    const float g = random.normal(2 * i), u = random.normal(2 * i + 1);
    values.push_back(rounded(g / (1 + std::exp(-g)) * u));
  }
  return values;
}

Floats normals(std::int64_t count, std::uint64_t stream, float size) {
  const Random random(8, stream);
  Floats values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(size * random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

Floats with_scaled_feature(Floats matrix, float factor) {
  for (std::size_t i = kLarge; i < matrix.size(); i += kIn) matrix[i] *= factor;
  return matrix;
}

Floats identity() {
  Floats values(kRows * kOut);
  for (std::size_t i = 0; i < kRows; ++i) values[i * kOut + i] = 1;
  return values;
}

struct Results {
  Floats y, dx, dw;
  friend bool operator==(const Results&, const Results&) = default;
};

/// What a Linear with weight w makes of x and dy.
class Layer {
 public:
  Layer(const std::string& backend, bool smooth, Floats w, int threads = 2)
      : backend_(backend == "cpu" ? make_backend(backend, threads) : testing::make_test_backend(backend)) {
    set_weight(std::move(w));
    if (smooth) linear.smooth_input(true);
  }
  void set_weight(const Floats& w) {
    backend_->copy_from_host(w.data(), linear.weight().value);
    ++linear.weight().version;
  }
  Results run(const Recipe& recipe, const Floats& x, const Floats& dy) {
    Results results;
    results.y = forward(recipe, x);
    const Tensor dx = backend_->allocate(DType::bf16, {kRows, kIn});
    linear.weight().clear_gradient();
    add_gradients(dy, dx, false);
    results.dx = values(dx);
    results.dw = values(linear.weight().gradient);
    return results;
  }
  void add_gradients(const Floats& dy, const Tensor& dx, bool add_to_dx) {
    const BackwardPass pass(context);
    linear.backward(context, saved, linear.cast_output_gradient(context, saved, real(dy, kOut)), dx,
                    add_to_dx);
  }
  Floats values(const Tensor& tensor) { return download(*backend_, tensor); }
  Floats forward(const Recipe& recipe, const Floats& x, bool enabled = true, bool calibrating = false) {
    const Autocast scope(context, enabled, recipe, calibrating);
    return values(linear.forward(context, linear.cast_input(context, real(x, kIn)), &saved));
  }
  Tensor real(const Floats& values, std::int64_t cols) {
    return upload(*backend_, values, {static_cast<std::int64_t>(values.size()) / cols, cols}, DType::bf16);
  }
  float amax() { return values(linear.fp8().input->amax_history).back(); }
  std::vector<std::int64_t> counters() {
    std::vector<std::int64_t> counts(kCastCounters);
    backend_->copy_to_host(linear.fp8().input->counters, counts.data());
    return counts;
  }

 private:
  std::shared_ptr<Backend> backend_;

 public:
  Linear linear{*backend_, {kIn, kOut}};
  Context context{*backend_};
  Linear::Saved saved;
};

class LinearSmoothing : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Backends, LinearSmoothing, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& test) { return test.param; });

TEST_P(LinearSmoothing, GivesTheExactProductsWhereEveryCastIsExact) {
  // x / s has 3 significant bits, and so has w s, whose amax 7 s makes its scale a power of two.
  Floats x = with_scaled_feature(integers(kRows * kIn, 1, 7), 1024), w = integers(kOut * kIn, 2, 7);
  x[kLarge] = 7 * 1024;
  for (std::size_t i = 0; i < kIn; ++i)
    x[kIn + i] = i == kLarge ? 4096 : 4;  // all features reach 4 and not 8
  for (std::size_t i = 0; i < kOut; ++i) w[i * kIn + kLarge] = i % 2 == 0 ? 7 : -7;
  const Floats dy = integers(kRows * kOut, 3, 3);
  std::vector<double> y(kRows * kOut), dx(kRows * kIn), dw(kOut * kIn);
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t n = 0; n < kOut; ++n) {
      for (std::size_t k = 0; k < kIn; ++k) {
        y[m * kOut + n] += static_cast<double>(x[m * kIn + k]) * w[n * kIn + k];
        dx[m * kIn + k] += static_cast<double>(dy[m * kOut + n]) * w[n * kIn + k];
        dw[n * kIn + k] += static_cast<double>(dy[m * kOut + n]) * x[m * kIn + k];
      }
    }
  }
  const auto in_bf16 = [](const std::vector<double>& exact) {
    Floats values;
    for (const double value : exact) values.push_back(rounded(value));
    return values;
  };
  // Hopper's FP8 units keep about 14 bits, counted from the largest, of each of the products that they add at once. All products
  // of dx and of dw are of one size; those of y are not. Half a unit of BF16 comes on top.
  constexpr double kLargestProduct = 7 * 7 * 1024;
  const double lost = GetParam() == "cuda" ? kIn * kLargestProduct * 0x1p-13 : 0;
  for (const int threads : {1, 3}) {
    Layer layer(GetParam(), true, w, threads);
    const Results found = layer.run(kDelayed, x, dy);  // its scales are still 1
    for (std::size_t i = 0; i < y.size(); ++i) {
      const double nearest = rounded(y[i]), allowed = lost > 0 ? lost + 0x1p-8 * std::abs(y[i]) : 0;
      EXPECT_NEAR(found.y[i], nearest, allowed) << i;
    }
    EXPECT_EQ(found.dx, in_bf16(dx));
    EXPECT_EQ(found.dw, Floats(dw.begin(), dw.end()));
  }
}

TEST_P(LinearSmoothing, MakesResultsIndependentOfTheSizeOfTheInput) {
  // The input times a power of two from the second step on, and the weight divided by it: the same bits, scaled back exactly.
  const Floats x = with_scaled_feature(products(1), 0x1p8f), w = normals(kOut * kIn, 2, 0.1f),
               dy = normals(kRows * kOut, 3, 0.01f);
  const auto times = [](Floats values, float factor) {
    for (float& value : values) value *= factor;
    return values;
  };
  for (const Recipe& recipe : recipes()) {
    Layer plain(GetParam(), true, w), sized(GetParam(), true, w);
    EXPECT_EQ(sized.run(recipe, x, dy), plain.run(recipe, x, dy));
    sized.set_weight(times(w, 0x1p-6f));
    const Results expected = plain.run(recipe, x, dy), found = sized.run(recipe, times(x, 0x1p6f), dy);
    EXPECT_EQ(found.y, expected.y) << describe(recipe);
    EXPECT_EQ(found.dx, times(expected.dx, 0x1p-6f)) << describe(recipe);
    EXPECT_EQ(found.dw, times(expected.dw, 0x1p6f)) << describe(recipe);
  }
}

/// Of the part of y that features other than kLarge contribute, the relative error, against a sum in double. What the casts
/// made of x and w is read off the gradients under dy = 1: dw = dy^T x and dx = dy w.
double error_of_other_features(Layer& layer, const Recipe& recipe, const Floats& x, const Floats& w) {
  Results cast;
  for (int step = 0; step < 2; ++step)
    cast = layer.run(recipe, x, identity());  // twice: delayed scales are known
  double errors = 0, squares = 0;
  for (std::size_t m = 0; m < kRows; ++m) {
    for (std::size_t n = 0; n < kOut; ++n) {
      double exact = 0, found = 0;
      for (std::size_t k = 0; k < kIn; ++k) {
        if (k == kLarge) continue;
        exact += static_cast<double>(x[m * kIn + k]) * w[n * kIn + k];
        found += static_cast<double>(cast.dw[m * kIn + k]) * cast.dx[n * kIn + k];
      }
      errors += (found - exact) * (found - exact);
      squares += exact * exact;
    }
  }
  return std::sqrt(errors / squares);
}

TEST_P(LinearSmoothing, ALargeFeatureDoesNotCostTheOthersTheirPrecision) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = products(1);
  for (const Recipe& recipe : recipes()) {
    Layer plain(GetParam(), false, w);
    const double without_outlier = error_of_other_features(plain, recipe, x, w);
    for (const float factor : {0x1p10f, 0x1p16f}) {
      const Floats large = with_scaled_feature(x, factor);
      Layer harmed(GetParam(), false, w), smoothed(GetParam(), true, w);
      const double with_outlier = error_of_other_features(harmed, recipe, large, w),
                   with_smoothing = error_of_other_features(smoothed, recipe, large, w);
      RecordProperty(fmt::format("{} {:.0f}", describe(recipe), factor),
                     fmt::format("without {:.4f}, with {:.4f}, smoothed {:.4f}", without_outlier,
                                 with_outlier, with_smoothing));
      // The level without: another alignment of the same numbers rounds a few percent better or worse.
      EXPECT_LT(with_smoothing, 1.1 * without_outlier) << describe(recipe) << factor;
      EXPECT_GT(with_outlier, without_outlier) << describe(recipe) << factor;
      if (factor > 0x1p10f) {
        EXPECT_GT(with_outlier, 4 * without_outlier) << describe(recipe);
      }
    }
  }
}

TEST_P(LinearSmoothing, AFeatureThatGrowsAllAtOnceDoesNotSaturate) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = products(1), dy = normals(kRows * kOut, 3, 0.01f);
  for (const bool smooth : {false, true}) {
    Layer layer(GetParam(), smooth, w);
    for (int step = 0; step < 3; ++step) layer.run(kDelayed, x, dy);
    const auto before = layer.counters()[kCastSaturated];
    layer.run(kDelayed, with_scaled_feature(x, 0x1p10f), dy);
    EXPECT_EQ(layer.counters()[kCastSaturated] > before, !smooth);
    EXPECT_EQ(layer.amax() == 2, smooth);
  }
}

TEST_P(LinearSmoothing, ChangesNoBitWhereEveryScaleIsOneOrNothingReadsOneScale) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = products(1), dy = normals(kRows * kOut, 3, 0.01f);
  Floats even = x;
  for (std::size_t i = 0; i < even.size(); ++i)
    even[i] = i < kIn ? 1.5f : std::clamp(even[i], -1.75f, 1.75f);  // every feature reaches 1 and not 2
  const auto expect_same = [&](const Recipe& recipe, const Floats& input, const GemmPolicies& policy) {
    Layer off(GetParam(), false, w), on(GetParam(), true, w);
    off.linear.set_policy(policy);
    on.linear.set_policy(policy);
    for (int step = 0; step < 2; ++step)
      EXPECT_EQ(on.run(recipe, input, dy), off.run(recipe, input, dy)) << describe(recipe) << step;
  };
  expect_same(CurrentScaling{}, even, {});
  const auto backend = testing::make_test_backend(GetParam());
  for (const Recipe& recipe : {Recipe(BlockScaling{}), Recipe(Mxfp8Scaling{}), Recipe(Nvfp4Scaling{})}) {
    if (backend->why_no_cast(cast_of(recipe, OperandRole::grad_output, Gemm::wgrad)).empty())
      expect_same(recipe, x, {});
  }
  expect_same(kDelayed, x, {{{false, ""}, {false, ""}, {false, ""}}});
  EXPECT_FALSE(Layer(GetParam(), true, w).linear.smooths_under(BlockScaling{}));
  EXPECT_TRUE(Layer(GetParam(), true, w).linear.smooths_under(kDelayed));
}

TEST_P(LinearSmoothing, ProductsThatStayInHighPrecisionAgree) {
  // Powers of two are exact in BF16, so a product that the policy keeps out of FP8 has the bits it has without smoothing.
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = with_scaled_feature(products(1), 0x1p10f),
               dy = normals(kRows * kOut, 3, 0.01f);
  for (int kept_out = 0; kept_out < 3; ++kept_out) {
    GemmPolicies policy;
    policy[static_cast<std::size_t>(kept_out)].fp8 = false;
    Layer off(GetParam(), false, w), on(GetParam(), true, w);
    off.linear.set_policy(policy);
    on.linear.set_policy(policy);
    const Results expected = off.run(kDelayed, x, dy), found = on.run(kDelayed, x, dy);
    constexpr std::array kResults = {&Results::y, &Results::dx, &Results::dw};
    const auto result = kResults.at(static_cast<std::size_t>(kept_out));
    EXPECT_EQ(found.*result, expected.*result) << kept_out;
  }
}

TEST_P(LinearSmoothing, GradientsOfMicroBatchesAddUp) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), dy = normals(kRows * kOut, 3, 0.01f);
  Layer alone(GetParam(), true, w), together(GetParam(), true, w);
  const Tensor dx = together.real(Floats(kRows * kIn, 3), kIn);
  Floats expected_dx(kRows * kIn, 3), expected_dw(kOut * kIn, 0);
  for (std::uint64_t batch = 0; batch < 2; ++batch) {
    const Results apart = alone.run(kDelayed, products(batch), dy);
    for (std::size_t i = 0; i < expected_dx.size(); ++i)
      expected_dx[i] = rounded(expected_dx[i] + apart.dx[i]);
    for (std::size_t i = 0; i < expected_dw.size(); ++i) expected_dw[i] += apart.dw[i];
    together.forward(kDelayed, products(batch));
    together.add_gradients(dy, dx, true);
  }
  EXPECT_EQ(together.values(dx), expected_dx);
  EXPECT_EQ(together.values(together.linear.weight().gradient), expected_dw);
  EXPECT_EQ(together.linear.weight_casts(), 2) << "a cast for each choice of scales";
}

TEST_P(LinearSmoothing, EvaluationUsesTheNewestTrainingScalesAndLeavesNoTrace) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = with_scaled_feature(products(1), 0x1p10f),
               dy = normals(kRows * kOut, 3, 0.01f);
  Layer layer(GetParam(), true, w), undisturbed(GetParam(), true, w);
  const auto evaluate = [&](const Floats& rows) {
    const NoGradients scope(layer.context);
    return layer.forward(kDelayed, rows);
  };
  EXPECT_EQ(evaluate(x).size(), static_cast<std::size_t>(kRows * kOut)) << "before there are scales";
  EXPECT_FALSE(layer.linear.fp8().channels);
  for (int step = 0; step < 3; ++step) {
    EXPECT_EQ(layer.run(kDelayed, x, dy), undisturbed.run(kDelayed, x, dy)) << step;
    const auto counters = layer.counters();
    const Floats all = evaluate(x), first(x.begin(), x.begin() + kIn);
    EXPECT_EQ(evaluate(first), Floats(all.begin(), all.begin() + kOut)) << "rows depend on each other";
    const auto casts = layer.linear.weight_casts();
    evaluate(products(2));
    EXPECT_EQ(layer.linear.weight_casts(), casts) << "the weight is cast once for all evaluations";
    EXPECT_EQ(layer.counters(), counters);
  }
}

TEST_P(LinearSmoothing, CalibrationComputesInHighPrecisionAndFindsTheScalesOfSmoothedInputs) {
  const Floats w = normals(kOut * kIn, 2, 0.1f), x = with_scaled_feature(products(1), 0x1p10f);
  Layer calibrated(GetParam(), true, w), real(GetParam(), false, w);
  EXPECT_EQ(calibrated.forward(kDelayed, x, false, true), real.forward(kDelayed, x, false));
  EXPECT_EQ(calibrated.amax(), 2) << "x / s is below";
  EXPECT_TRUE(calibrated.linear.fp8().channels);
}

TEST_P(LinearSmoothing, NoCopyOfTheWeightIsMadeAhead) {
  Layer layer(GetParam(), true, normals(kOut * kIn, 2, 0.1f));
  GemmPolicies policy;
  policy[1].fp8 = false;  // dgrad reads a copy in high precision
  layer.linear.set_policy(policy);
  layer.run(kDelayed, products(1), identity());
  const WeightCopies next = layer.linear.next_weight_copies();
  EXPECT_FALSE(next.fp8.defined());
  EXPECT_FALSE(next.bf16.defined());
}

TEST(LinearSmoothingRefusals, SayWhy) {
  const auto cpu = make_backend("cpu", 1);
  Linear leader(*cpu, {kIn, kOut}), sibling(*cpu, {kIn, kOut});
  sibling.share_input_of(leader);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { leader.smooth_input(true); }),
                       "an input that 2 modules read"));
  Linear alone(*cpu, {kIn, kOut}), late(*cpu, {kIn, kOut});
  alone.smooth_input(true);
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { late.share_input_of(alone); }), "smoothed"));
}

}  // namespace
}  // namespace quaver
