/// Cross entropy of BF16 logits with its gradient in FP8, on a device: in one pass over the logits, where the backend has that for a shape,
/// beside two, in turns. Shares are of the rate of a copy, of 4 bytes a logit (read once; bytes and transposed bytes written).
///
/// usage: bench_cross_entropy [--backend cuda] [--rounds N]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "normal_numbers.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr double kSecondsPerTurn = 0.02;
constexpr std::int64_t kCopyBytes = std::int64_t{1} << 30;
constexpr float kGradientScale = 1e-3f;
constexpr double kCastScale = 0x1p24;  // gradients reach 1e-3

Tensor filled(Backend& backend, DType dtype, Shape shape, double value) {
  const Tensor tensor = backend.allocate(dtype, std::move(shape));
  backend.fill(tensor, value);
  return tensor;
}

Output fp8_gradient(Backend& backend, std::int64_t rows, std::int64_t cols) {
  Output gradient;
  gradient.quantized = {backend.allocate(DType::e5m2, {rows, cols}),
                        backend.allocate(DType::e5m2, {cols, rows}), backend.allocate(DType::f32, {1})};
  gradient.quantizer = {DType::e5m2, filled(backend, DType::f32, {1}, kCastScale),
                        filled(backend, DType::f32, {1}, 0), filled(backend, DType::i64, {kCastCounters}, 0)};
  return gradient;
}

Tensor scattered_targets(Backend& backend, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kStep = 10007, kWithout = 64;  // prime; every so many rows one without target
  std::vector<std::int32_t> targets;
  for (std::int64_t m = 0; m < rows; ++m)
    targets.push_back(m % kWithout == 3 ? -1 : static_cast<std::int32_t>(m * kStep % cols));
  return upload(backend, targets, {rows});
}

/// Of functions in turns: median seconds of a call of each.
std::vector<double> times_of(Backend& backend, const std::vector<std::function<void()>>& calls, int rounds) {
  const Tensor flag = filled(backend, DType::f32, {1}, 0);
  const auto timed = [&](const std::function<void()>& call, int repeats) {
    const BusyTimer timer(0);
    for (int i = 0; i < repeats; ++i) call();
    float value = 0;
    backend.copy_to_host(flag, &value);  // waits for what came before it
    return timer.seconds() / repeats;
  };
  std::vector<int> repeats;
  for (const auto& call : calls) {
    timed(call, 1);
    repeats.push_back(std::max(1, static_cast<int>(kSecondsPerTurn / timed(call, 2))));
  }
  std::vector<std::vector<double>> seconds(calls.size());
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < calls.size(); ++i) seconds[i].push_back(timed(calls[i], repeats[i]));
  }
  std::vector<double> medians;
  for (const auto& of_call : seconds) medians.push_back(median(of_call));
  return medians;
}

void measure(Backend& backend, std::int64_t rows, std::int64_t cols, int rounds) {
  const Tensor logits = normal(backend, rows, cols, 1), targets = scattered_targets(backend, rows, cols),
               losses = backend.allocate(DType::f32, {rows}),
               from = filled(backend, DType::u8, {kCopyBytes}, 1),
               to = backend.allocate(DType::u8, {kCopyBytes});
  const Output gradient = fp8_gradient(backend, rows, cols);
  const auto cross_entropy = [&](float gradient_scale) {
    backend.cross_entropy(logits, targets, gradient_scale, losses, gradient);
  };
  // A negative scale is computed in two passes.
  const std::vector<double> seconds =
      times_of(backend,
               {[&] { cross_entropy(kGradientScale); }, [&] { cross_entropy(-kGradientScale); },
                [&] { backend.copy(from, to); }},
               rounds);
  const double copied = 2.0 * kCopyBytes / seconds[2], bytes = 4.0 * static_cast<double>(rows * cols);
  fmt::print("{:6} x {:6}  {:7.3f} ms, {:.2f} of a copy   two passes {:7.3f} ms, {:.2f}   {:.3f}\n", rows,
             cols, seconds[0] * 1e3, bytes / seconds[0] / copied, seconds[1] * 1e3,
             bytes / seconds[1] / copied, seconds[1] / seconds[0]);
  std::fflush(stdout);
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  using namespace quaver;
  CLI::App app(
      "Cross entropy with a gradient in FP8: the backend's choice beside two passes over the logits");
  std::string name = "cuda";
  int rounds = 9;
  app.add_option("--backend", name)->capture_default_str();
  app.add_option("--rounds", rounds, "rounds; medians are printed")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto backend = make_backend(name);
  fmt::print("{}\n", backend->describe());
  for (const std::int64_t cols : {32768, 24576, 17408}) {
    for (const std::int64_t rows : {32768, 24576, 8192, 2048, 1024, 512, 256, 128})
      measure(*backend, rows, cols, rounds);
  }
}
