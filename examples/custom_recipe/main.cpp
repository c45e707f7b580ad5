/// A recipe of a program's own: blocks of 64 numbers along the contraction, with scales that leave a factor of two of room
/// and ignore amaxes that are not finite. A Linear runs under it, and under two recipes of the library, beside BF16.
#include <quaver/autocast.h>
#include <quaver/backend.h>
#include <quaver/linear.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <vector>

using namespace quaver;

namespace {

constexpr int kRows = 96, kIn = 200, kOut = 72;

/// Powers of two in one byte: the smallest for which the largest number of a block is at most half of the type's.
class HalfRange final : public ScaleRule {
 public:
  DType stored() const override { return DType::e8m0; }
  float block_scale_inv(float amax, float /*tensor_scale*/, float largest) const override {
    return std::isfinite(amax) ? 2 * amax / largest : 1;
  }
};

CustomScaling half_range_64() {
  const auto rule = std::make_shared<const HalfRange>();
  return {"half-range-64", std::make_shared<const CustomScaling::CastOf>([rule](OperandRole role, Gemm gemm) {
            // The contraction runs over the columns of both operands of fprop and of dy in dgrad; else over rows.
            const bool columns =
                gemm == Gemm::fprop || (gemm == Gemm::dgrad && role == OperandRole::grad_output);
            const DType format = role == OperandRole::grad_output ? DType::e5m2 : DType::e4m3;
            return OperandCast{format, columns ? 1 : 64, columns ? 64 : 1, rule};
          })};
}

/// Waves whose size differs from row to row.
std::vector<float> waves(int rows, int cols, float frequency, float amplitude) {
  std::vector<float> values;
  for (int i = 0; i < rows * cols; ++i)
    values.push_back(amplitude * std::exp2(static_cast<float>(i / cols % 7)) *
                     std::sin(frequency * static_cast<float>(i)));
  return values;
}

/// dw of one micro-batch.
std::vector<float> weight_gradient(Backend& backend, const std::optional<Recipe>& recipe) {
  Linear linear(backend, {kIn, kOut});
  linear.weight().value = upload(backend, waves(kOut, kIn, 0.37f, 0.01f), {kOut, kIn});
  ++linear.weight().version;
  const Tensor x = upload(backend, waves(kRows, kIn, 0.11f, 1), {kRows, kIn}, DType::bf16);
  const Tensor dy = upload(backend, waves(kRows, kOut, 0.23f, 1e-4f), {kRows, kOut}, DType::bf16);
  const Tensor dx = backend.allocate(DType::bf16, {kRows, kIn});

  Context context(backend);
  Linear::Saved saved;
  {
    const Autocast scope(context, recipe.has_value(), recipe.value_or(DelayedScaling{}));
    linear.forward(context, linear.cast_input(context, x), &saved);
  }
  const BackwardPass pass(context);
  linear.backward(context, saved, linear.cast_output_gradient(context, saved, dy), dx);
  if (recipe) {
    const GemmRecord& wgrad = linear.fp8().gemms[2];
    std::printf("%-14s wgrad %s x %s -> %s", wgrad.recipe.c_str(), name_of(wgrad.a).data(),
                name_of(wgrad.b).data(), name_of(wgrad.out).data());
  }
  return download(backend, linear.weight().gradient);
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

int main() {
  const auto backend = make_backend("cpu");
  const std::vector<float> bf16 = weight_gradient(*backend, std::nullopt);
  for (const Recipe& recipe : {Recipe(half_range_64()), Recipe(Mxfp8Scaling{}), Recipe(CurrentScaling{})}) {
    const double error = distance(weight_gradient(*backend, recipe), bf16);
    std::printf(", %.3f from BF16\n", error);
    if (!(error < 0.1)) return 1;
  }
  return 0;
}
