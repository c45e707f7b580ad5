/// Linear under recipes that read their scales off the tensor.
#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "quaver/backend.h"
#include "quaver/linear.h"
#include "support/errors.h"
#include "support/test_backends.h"

namespace quaver {
namespace {

constexpr std::int64_t kRows = 19, kIn = 35, kOut = 21;

std::vector<float> normals(std::int64_t count, std::uint64_t stream, float size = 1) {
  const Random random(5, stream);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i)
    values.push_back(size * random.normal(static_cast<std::uint64_t>(i)));
  return values;
}

/// One Linear with a bias, its input and the gradient of its output.
struct Layer {
  explicit Layer(std::shared_ptr<Backend> b) : backend(std::move(b)) {
    set_weight(1);
    backend->fill(linear.bias()->value, 0.25);
    ++linear.bias()->version;
  }
  void set_weight(std::uint64_t stream) {
    const auto values = normals(kOut * kIn, stream, 0.1f);
    backend->copy_from_host(values.data(), linear.weight().value);
    ++linear.weight().version;
  }
  /// y, dx and dw of one micro-batch.
  std::array<std::vector<float>, 3> run(Context& context, const std::optional<Recipe>& recipe) {
    Linear::Saved saved;
    Tensor y;
    {
      const Autocast scope(context, recipe.has_value(), recipe.value_or(DelayedScaling{}));
      y = linear.forward(context, linear.cast_input(context, x), &saved);
    }
    const BackwardPass pass(context);
    const Tensor dx = backend->allocate(DType::bf16, {kRows, kIn});
    linear.weight().clear_gradient();
    linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy), dx);
    return {download(*backend, y), download(*backend, dx), download(*backend, linear.weight().gradient)};
  }

  std::shared_ptr<Backend> backend;
  Linear linear{*backend, {kIn, kOut, 0, kOut}};
  Tensor x = upload(*backend, normals(kRows* kIn, 2), {kRows, kIn}, DType::bf16);
  Tensor dy = upload(*backend, normals(kRows* kOut, 3, 0.01f), {kRows, kOut}, DType::bf16);
};

std::vector<Recipe> tensor_recipes() {
  return {CurrentScaling{}, CurrentScaling{Fp8Format::e4m3}, BlockScaling{},
          Mxfp8Scaling{},   Mxfp8Scaling{Fp8Format::hybrid}, Nvfp4Scaling{}};
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2.0);
    size += std::pow(static_cast<double>(b[i]), 2.0);
  }
  return std::sqrt(difference / size);
}

TEST(LinearRecipes, ProductsAreThoseOfTheReferenceAndNearBf16) {
  for (const Recipe& recipe : tensor_recipes()) {
    Layer reference(make_backend("reference")), cpu(make_backend("cpu", 3)), real(make_backend("cpu", 1));
    Context reference_context(*reference.backend), cpu_context(*cpu.backend), real_context(*real.backend);
    const auto expected = reference.run(reference_context, recipe), found = cpu.run(cpu_context, recipe),
               bf16 = real.run(real_context, std::nullopt);
    EXPECT_EQ(found, expected) << describe(recipe);
    // Relative errors of roundings: 2^-4 at most in E4M3, 2^-3 in E5M2, a third in E2M1; over a matrix they average.
    const double bound = std::holds_alternative<Nvfp4Scaling>(recipe) ? 0.35 : 0.08;
    for (int i = 0; i < 3; ++i) {
      EXPECT_LT(distance(found[static_cast<std::size_t>(i)], bf16[static_cast<std::size_t>(i)]), bound)
          << describe(recipe) << i;
      EXPECT_GT(distance(found[static_cast<std::size_t>(i)], bf16[static_cast<std::size_t>(i)]), 1e-3)
          << describe(recipe) << i;
    }
  }
}

TEST(LinearRecipes, RecordTypesRecipeAndCounts) {
  Layer layer(make_backend("cpu", 1));
  Context context(*layer.backend);
  layer.run(context, Nvfp4Scaling{});
  for (const GemmRecord& gemm : layer.linear.fp8().gemms) {
    EXPECT_EQ(gemm.a, DType::e2m1);
    EXPECT_EQ(gemm.b, DType::e2m1);
    EXPECT_EQ(gemm.fp8_runs, 1);
    EXPECT_EQ(gemm.recipe, "nvfp4(stochastic, hadamard)");
  }
  layer.run(context, Mxfp8Scaling{Fp8Format::hybrid});
  const auto& [fprop, dgrad, wgrad] = layer.linear.fp8().gemms;
  EXPECT_EQ(fprop.a, DType::e4m3);
  EXPECT_EQ(dgrad.a, DType::e5m2);
  EXPECT_EQ(wgrad.a, DType::e5m2);
  EXPECT_EQ(wgrad.b, DType::e4m3);
  std::vector<std::int64_t> counters(kCastCounters);
  layer.backend->copy_to_host(layer.linear.fp8().input->counters, counters.data());
  EXPECT_EQ(counters[kCastElements], 4 * kRows * kIn);  // row and column copies, twice
}

TEST(LinearRecipes, AWeightIsCastOncePerChangeAndForm) {
  Layer layer(make_backend("cpu", 1));
  Context context(*layer.backend);
  for (int i = 0; i < 3; ++i) layer.run(context, BlockScaling{});
  EXPECT_EQ(layer.linear.weight_casts(), 1) << "128 x 128 blocks serve fprop and dgrad";
  for (int i = 0; i < 3; ++i) layer.run(context, Mxfp8Scaling{});
  EXPECT_EQ(layer.linear.weight_casts(), 3) << "rows for fprop, columns for dgrad";
  layer.set_weight(9);
  layer.run(context, Mxfp8Scaling{});
  EXPECT_EQ(layer.linear.weight_casts(), 5);
}

TEST(LinearRecipes, ACastOfTheWeightKeepsItsPlace) {
  // A device that repeats what it recorded meets the same addresses in every step.
  for (const Recipe& recipe : {Recipe(CurrentScaling{}), Recipe(BlockScaling{})}) {
    Layer layer(make_backend("cpu", 1)), fresh(make_backend("cpu", 1));
    Context context(*layer.backend), fresh_context(*fresh.backend);
    const auto cast_of_step = [&] {
      Linear::Saved saved;
      const Autocast scope(context, true, recipe);
      layer.linear.forward(context, layer.linear.cast_input(context, layer.x), &saved);
      return saved.w_fp8;
    };
    const QuantizedTensor first = cast_of_step();
    layer.set_weight(9);
    const QuantizedTensor second = cast_of_step();  // though somebody still holds the first
    EXPECT_EQ(second.bytes.raw(), first.bytes.raw()) << describe(recipe);
    if (first.scale_inv) {
      EXPECT_EQ(second.scale_inv.raw(), first.scale_inv.raw()) << describe(recipe);
    }
    if (first.blocks.scale_inv) {
      EXPECT_EQ(second.blocks.scale_inv.raw(), first.blocks.scale_inv.raw()) << describe(recipe);
    }
    fresh.set_weight(9);
    EXPECT_EQ(layer.run(context, recipe), fresh.run(fresh_context, recipe)) << describe(recipe);
  }
}

TEST(LinearRecipes, EvaluationBetweenStepsHidesNoCast) {
  // Or the counters of a run that was resumed there would differ from those of one that was not.
  const auto casts_of_weight = [](bool evaluates) {
    Layer layer(make_backend("cpu", 1));
    Context context(*layer.backend);
    for (std::uint64_t step = 0; step < 3; ++step) {
      layer.run(context, CurrentScaling{});
      layer.set_weight(step);
      if (!evaluates) continue;
      const NoGradients evaluation(context);
      const Autocast scope(context, true, CurrentScaling{});
      layer.linear.forward(context, layer.linear.cast_input(context, layer.x), nullptr);
    }
    std::vector<std::int64_t> counters(kCastCounters);
    layer.backend->copy_to_host(layer.linear.fp8().weight->counters, counters.data());
    return counters;
  };
  EXPECT_EQ(casts_of_weight(true), casts_of_weight(false));
  EXPECT_EQ(casts_of_weight(true)[kCastElements], 3 * kIn * kOut);
}

TEST(LinearRecipes, RandomNumbersFollowSeedPositionAndStream) {
  const auto gradient = [](std::uint64_t seed, std::uint64_t position, std::uint64_t stream) {
    Layer layer(make_backend("cpu", 2));
    Context context(*layer.backend);
    context.set_noise(seed, position);
    layer.linear.set_noise_stream(stream);
    return layer.run(context, Nvfp4Scaling{})[2];
  };
  const auto first = gradient(1, 2, 3);
  EXPECT_EQ(gradient(1, 2, 3), first);
  EXPECT_NE(gradient(2, 2, 3), first);
  EXPECT_NE(gradient(1, 3, 3), first);
  EXPECT_NE(gradient(1, 2, 4), first);
}

TEST(LinearRecipes, TwoModelsWithTwoRecipesDoNotDisturbEachOther) {
  const auto backend = make_backend("cpu", 2);
  const Recipe recipes[] = {Mxfp8Scaling{}, DelayedScaling{.amax_history_len = 2}};
  std::array<std::vector<std::array<std::vector<float>, 3>>, 2> alone, together;
  for (std::size_t i = 0; i < 2; ++i) {
    Layer layer(backend);
    Context context(*backend);
    for (int step = 0; step < 3; ++step) alone[i].push_back(layer.run(context, recipes[i]));
  }
  Layer layers[] = {Layer(backend), Layer(backend)};
  Context contexts[] = {Context(*backend), Context(*backend)};
  for (int step = 0; step < 3; ++step) {
    for (std::size_t i = 0; i < 2; ++i) together[i].push_back(layers[i].run(contexts[i], recipes[i]));
  }
  EXPECT_EQ(together, alone);
}

TEST(LinearRecipes, EachGemmAndOperandMayFollowItsOwn) {
  Layer layer(make_backend("cpu", 2)), reference(make_backend("reference"));
  GemmPolicies policies;
  policies[0].recipe = Mxfp8Scaling{};
  policies[1].real_operands[static_cast<std::size_t>(OperandRole::weight)] = true;
  policies[2].recipe = BlockScaling{};
  layer.linear.set_policy(policies);
  reference.linear.set_policy(policies);
  Context context(*layer.backend), reference_context(*reference.backend);
  const DelayedScaling delayed{.amax_history_len = 4};
  for (int step = 0; step < 2; ++step)
    EXPECT_EQ(layer.run(context, delayed), reference.run(reference_context, delayed)) << step;
  const auto& [fprop, dgrad, wgrad] = layer.linear.fp8().gemms;
  EXPECT_EQ(fprop.recipe, "mxfp8(e4m3)");
  EXPECT_EQ(dgrad.a, DType::e5m2);
  EXPECT_EQ(dgrad.b, DType::bf16);
  EXPECT_EQ(dgrad.fp8_runs, 2);
  EXPECT_EQ(wgrad.recipe, "block");
  // dy alone is cast by delayed scaling.
  EXPECT_NE(download(*layer.backend, layer.linear.fp8().grad_output->scale)[0], 1);
  EXPECT_EQ(download(*layer.backend, layer.linear.fp8().input->scale)[0], 1);
  policies[2].recipe = DelayedScaling{.margin = 1};
  layer.linear.set_policy(policies);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::usage, [&] { layer.run(context, delayed); }), "share their scales"));
}

TEST(LinearRecipes, SiblingsShareOneCast) {
  const auto backend = make_backend("cpu", 1);
  Linear q(*backend, {kIn, kOut}), k(*backend, {kIn, kOut});
  for (Linear* linear : {&q, &k}) backend->fill(linear->weight().value, 0.5);
  k.share_input_of(q);
  Context context(*backend);
  const Autocast scope(context, true, Mxfp8Scaling{});
  const Output x =
      q.cast_input(context, upload(*backend, normals(kRows * kIn, 1), {kRows, kIn}, DType::bf16));
  Linear::Saved q_saved, k_saved;
  q.forward(context, x, &q_saved);
  k.forward(context, x, &k_saved);
  EXPECT_EQ(q_saved.x_fp8.bytes.raw(), k_saved.x_fp8.bytes.raw());
  EXPECT_FALSE(q_saved.x.defined());
}

TEST(LinearRecipes, ACustomAmaxFunctionSeesTheWindow) {
  for (const char* name : {"reference", "cpu"}) {
    Layer layer(make_backend(name, 1));
    Context context(*layer.backend);
    DelayedScaling recipe{.amax_history_len = 3, .amax_compute_algo = AmaxCompute::custom};
    EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { layer.run(context, recipe); }),
                         "without an amax_function"));
    recipe.amax_function = std::make_shared<const AmaxFunction>([](std::span<const float> window) {
      EXPECT_EQ(window.size(), 3u);
      return window.back() * 4;
    });
    Layer fresh(make_backend(name, 1));
    Context fresh_context(*fresh.backend);
    fresh.run(fresh_context, recipe);
    const float amax = download(*fresh.backend, fresh.linear.fp8().input->amax_history).back();
    EXPECT_GT(amax, 0);
    EXPECT_EQ(download(*fresh.backend, fresh.linear.fp8().input->scale)[0], 448 / (amax * 4));
  }
}

/// Every 40 numbers of a row share a power of two, whatever the operand.
struct WideRule final : ScaleRule {
  float block_scale_inv(float amax, float, float largest) const override {
    return amax > 0 && std::isfinite(amax) ? std::exp2(std::ceil(std::log2(amax / largest))) : 1;
  }
};

TEST(LinearRecipes, AProgramsOwnRecipeRunsOnBothBackends) {
  const auto rule = std::make_shared<const WideRule>();
  const CustomScaling custom{"rows of 40",
                             std::make_shared<const CustomScaling::CastOf>([rule](OperandRole, Gemm) {
                               return OperandCast{DType::e4m3, 1, 40, rule};
                             })};
  Layer cpu(make_backend("cpu", 2)), reference(make_backend("reference")), real(make_backend("cpu", 1));
  Context context(*cpu.backend), reference_context(*reference.backend), real_context(*real.backend);
  const auto found = cpu.run(context, custom);
  EXPECT_EQ(found, reference.run(reference_context, custom));
  EXPECT_LT(distance(found[0], real.run(real_context, std::nullopt)[0]), 0.08);
  EXPECT_EQ(cpu.linear.fp8().gemms[2].recipe, "rows of 40");
}

TEST(LinearRecipes, OtherBackendsRunCurrentBlockAndMxfp8ScalingAndRefuseTheRest) {
  Layer cpu(make_backend("cpu", 1)), emulated(testing::make_test_backend("emulation"));
  Context cpu_context(*cpu.backend), context(*emulated.backend);
  const std::string mx = "scales of 1 x 32 and 1 x 32", block = "scales of 1 x 128 and 128 x 128";
  struct Case {
    Recipe recipe;
    std::string fprop, dgrad, wgrad;
    int weight_casts;
  };
  int casts = 0;
  // 128 x 128 blocks serve fprop and dgrad.
  for (const auto& [recipe, fprop, dgrad, wgrad, weight_casts] :
       {Case{CurrentScaling{}, "", "", "", 1},
        {BlockScaling{}, block, block, "scales of 1 x 128 and 1 x 128", 1},
        {Mxfp8Scaling{}, mx, mx, mx, 2}}) {
    const auto expected = cpu.run(cpu_context, recipe), found = emulated.run(context, recipe);
    // Sums of at most 35 products in another order: far below the step of BF16, into which they are rounded.
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_LT(distance(found[i], expected[i]), 0x1p-8) << describe(recipe) << i;
    const auto& gemms = emulated.linear.fp8().gemms;
    EXPECT_TRUE(contains(gemms[0].kernel, fprop)) << gemms[0].kernel;
    EXPECT_TRUE(contains(gemms[1].kernel, dgrad)) << gemms[1].kernel;
    EXPECT_TRUE(contains(gemms[2].kernel, wgrad)) << gemms[2].kernel;
    casts += weight_casts;
    EXPECT_EQ(emulated.linear.weight_casts(), casts) << describe(recipe);
    emulated.run(context, recipe);
    EXPECT_EQ(emulated.linear.weight_casts(), casts) << "a weight that did not change is not cast again";
  }
  const std::string message = error_message(ErrorKind::usage, [&] { emulated.run(context, Nvfp4Scaling{}); });
  EXPECT_TRUE(contains(message, "does not run the recipe nvfp4")) << message;
  EXPECT_TRUE(contains(message, "Hint")) << message;
}

}  // namespace
}  // namespace quaver
