/// Two Linears and a norm in FP8: forward and backward in an Autocast scope, then the FP8 state they are left
/// with.
#include <quaver/autocast.h>
#include <quaver/backend.h>
#include <quaver/linear.h>
#include <quaver/norm.h>

#include <cmath>
#include <cstdio>
#include <vector>

using namespace quaver;

namespace {

constexpr int kRows = 32, kWidth = 48, kHidden = 64;

std::vector<float> waves(int count, float frequency, float amplitude) {
  std::vector<float> values(count);
  for (int i = 0; i < count; ++i) values[i] = amplitude * std::sin(frequency * static_cast<float>(i));
  return values;
}

void set_weight(Backend& backend, Linear& linear, float frequency) {
  Parameter& weight = linear.weight();
  weight.value = upload(backend, waves(static_cast<int>(weight.value.elements()), frequency, 0.1f),
                        weight.value.shape());
  ++weight.version;
}

void print_slot(Backend& backend, const char* linear, const char* slot, const ScalingSlot& state) {
  const std::vector<float> history = download(backend, state.amax_history);
  std::printf("%-5s %-12s amax %-12g scale %g\n", linear, slot, history.back(),
              download(backend, state.scale)[0]);
}

void print_state(Backend& backend, const char* name, const Linear& linear) {
  const Fp8State& fp8 = linear.fp8();
  print_slot(backend, name, "input", *fp8.input);
  print_slot(backend, name, "weight", *fp8.weight);
  print_slot(backend, name, "grad_output", *fp8.grad_output);
  const char* gemms[] = {"fprop", "dgrad", "wgrad"};
  for (int i = 0; i < 3; ++i) {
    const GemmRecord& gemm = fp8.gemms[i];
    std::printf("%-5s %-12s %s x %s -> %s, %lld times in FP8\n", name, gemms[i], name_of(gemm.a).data(),
                name_of(gemm.b).data(), name_of(gemm.out).data(), static_cast<long long>(gemm.fp8_runs));
  }
}

}  // namespace

int main() {
  const auto backend = make_backend("cpu");
  RmsNorm norm(*backend, kWidth);
  Linear up(*backend, {kWidth, kHidden}), down(*backend, {kHidden, kWidth});
  set_weight(*backend, up, 0.37f);
  set_weight(*backend, down, 0.53f);

  Context context(*backend);
  const Tensor x = upload(*backend, waves(kRows * kWidth, 0.11f, 3.0f), {kRows, kWidth}, DType::bf16);
  const Tensor dy = upload(*backend, waves(kRows * kWidth, 0.23f, 0.01f), {kRows, kWidth}, DType::bf16);
  for (int step = 0; step < 3; ++step) {
    Norm::Saved norm_saved;
    Linear::Saved up_saved, down_saved;
    {
      const Autocast scope(context, true, DelayedScaling{});
      const Output normed = up.make_input(context, kRows);  // the norm writes FP8 bytes
      norm.forward(x, normed, &norm_saved);
      const Tensor hidden = up.forward(context, normed, &up_saved);
      down.forward(context, down.cast_input(context, hidden), &down_saved);
    }
    const BackwardPass pass(context);
    const Tensor dhidden =
        upload(*backend, std::vector<float>(kRows * kHidden), {kRows, kHidden}, DType::bf16);
    const Tensor dnormed = upload(*backend, std::vector<float>(kRows * kWidth), {kRows, kWidth}, DType::bf16);
    const Tensor dx = upload(*backend, std::vector<float>(kRows * kWidth), {kRows, kWidth}, DType::bf16);
    down.backward(context, down_saved, down.cast_output_gradient(context, down_saved, dy), dhidden);
    up.backward(context, up_saved, up.cast_output_gradient(context, up_saved, dhidden), dnormed);
    norm.backward(norm_saved, dnormed, {dx}, false);
  }
  print_state(*backend, "up", up);
  print_state(*backend, "down", down);
  return 0;
}
