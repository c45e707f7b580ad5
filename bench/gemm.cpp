/// GEMMs of the CPU backend beside the raw dot-product loop, measured in turn: the machine's clock and its
/// other users change.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "ops/cpu/peak.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr int kRounds = 9;
constexpr double kSecondsPerRound = 0.02;

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

GemmOperand operand(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols) {
  GemmOperand operand(backend.allocate(dtype, {rows, cols}));
  const std::size_t bytes = static_cast<std::size_t>(rows * cols) * size_of(dtype);
  std::fill_n(operand.values.data<std::uint8_t>(), bytes,
              std::uint8_t{0x38});  // 1.0 as e4m3, ordinary in every type
  if (!is_fp8(dtype)) return operand;
  operand.scale_inv = backend.allocate(DType::f32, {1});
  backend.fill(operand.scale_inv, 1);
  return operand;
}

/// Prints GFLOP/s and the share of the peak loop that ran right before.
void measure(Backend& backend, Gemm kind, DType dtype, std::int64_t m, std::int64_t k, std::int64_t n) {
  const GemmOperand x = operand(backend, dtype, m, k), w = operand(backend, dtype, n, k),
                    dy = operand(backend, dtype, m, n);
  const GemmOperand& a = kind == Gemm::fprop ? x : dy;
  const GemmOperand& b = kind == Gemm::wgrad ? x : w;
  const Shape shape = kind == Gemm::fprop ? Shape{m, n} : kind == Gemm::dgrad ? Shape{m, k} : Shape{n, k};
  const Tensor out = backend.allocate(kind == Gemm::wgrad ? DType::f32 : DType::bf16, shape);
  const auto run = [&] { backend.gemm(kind, a, b, {}, false, out); };
  const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n);
  run();
  const int repeats = std::max(1, static_cast<int>(kSecondsPerRound / seconds_of(run)));
  std::vector<double> rates, shares;
  for (int round = 0; round < kRounds; ++round) {
    const double peak = cpu::measure_bf16_peak(0, kSecondsPerRound);
    const double seconds = seconds_of([&] {
      for (int i = 0; i < repeats; ++i) run();
    });
    rates.push_back(operations * repeats / seconds);
    shares.push_back(rates.back() / peak);
  }
  fmt::print("{:>5} {:>5} {:>5}  {:5} {:5} {:6.0f} GFLOP/s  {:3.0f}% of the BF16 peak loop\n", m, k, n,
             name_of(kind), name_of(dtype), median(rates) * 1e-9, median(shares) * 100);
}

}  // namespace
}  // namespace quaver

int main() {
  using namespace quaver;
  constexpr std::int64_t kSizes[][3] = {{1024, 1024, 1024}, {2048, 768, 2304}, {2048, 3072, 768},
                                        {2048, 320, 1280},  {2048, 192, 512},  {2048, 512, 192},
                                        {8, 768, 2304}};
  const auto backend = make_backend("cpu");
  fmt::print("{}\n    m     k     n\n", backend->describe());
  for (const auto& [m, k, n] : kSizes) {
    for (DType dtype : {DType::e4m3, DType::bf16, DType::f32}) {
      for (Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) measure(*backend, kind, dtype, m, k, n);
    }
  }
}
