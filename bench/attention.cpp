/// Attention of the CPU backend, forward and backward, beside the raw dot-product loop, in turn. Only causal work is
/// counted: 2 products forward and 5 backward of length^2 / 2 * head_dim multiply-adds a head.
///
/// usage: bench_attention [--threads N] [--rounds N]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <vector>

#include "ops/cpu/peak.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr double kSecondsPerTurn = 0.02;

double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

Tensor normal(Backend& backend, std::int64_t rows, std::int64_t cols, std::uint64_t stream) {
  const Tensor real = backend.allocate(DType::f32, {rows, cols}),
               values = backend.allocate(DType::bf16, {rows, cols});
  backend.fill_normal(real, 0, 1, 1, stream);
  backend.convert(real, values);
  return values;
}

void measure(const char* name, const std::function<void()>& run, double operations, int threads, int rounds) {
  run();
  const int repeats =
      std::max(1, static_cast<int>(kSecondsPerTurn / std::min(seconds_of(run), seconds_of(run))));
  std::vector<double> rates, shares;
  for (int round = 0; round < rounds; ++round) {
    const double peak = cpu::measure_bf16_peak(threads, kSecondsPerTurn);
    const double seconds = seconds_of([&] {
      for (int i = 0; i < repeats; ++i) run();
    });
    rates.push_back(operations * repeats / seconds);
    shares.push_back(rates.back() / peak);
  }
  fmt::print("  {:8} {:5.0f} GFLOP/s {:3.0f}%", name, median(rates) * 1e-9, median(shares) * 100);
}

void measure(Backend& backend, const AttentionShape& shape, int threads, int rounds) {
  const std::int64_t rows = shape.batch * shape.query_len, q_cols = shape.heads * shape.head_dim,
                     k_cols = shape.kv_heads * shape.head_dim;
  const Tensor q = normal(backend, rows, q_cols, 1), k = normal(backend, rows, k_cols, 2),
               v = normal(backend, rows, k_cols, 3), dout = normal(backend, rows, q_cols, 4);
  const Tensor out = backend.allocate(DType::bf16, q.shape()), dq = backend.allocate(DType::bf16, q.shape()),
               dk = backend.allocate(DType::bf16, k.shape()), dv = backend.allocate(DType::bf16, k.shape()),
               lse = backend.allocate(DType::f32, {rows, shape.heads});
  const double product = static_cast<double>(shape.batch * shape.heads * shape.head_dim) *
                         static_cast<double>(shape.query_len * shape.key_len);
  fmt::print("{} x {:4}, heads {:2}/{}, head_dim {:3} ", shape.batch, shape.query_len, shape.heads,
             shape.kv_heads, shape.head_dim);
  measure(
      "forward", [&] { backend.attention(shape, q, k, v, {}, out, lse); }, 2 * product, threads, rounds);
  measure(
      "backward", [&] { backend.attention_backward(shape, dout, q, k, v, {}, out, lse, dq, dk, dv); },
      5 * product, threads, rounds);
  fmt::print("\n");
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  using namespace quaver;
  CLI::App app("Attention of the CPU backend: GFLOP/s of causal work and share of the dot-product peak");
  int threads = 0, rounds = 9;
  app.add_option("--threads", threads, "0: all processors")->capture_default_str();
  app.add_option("--rounds", rounds, "alternating rounds; medians are printed")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto backend = make_backend("cpu", threads);
  fmt::print("{}\n", backend->describe());
  constexpr std::int64_t kShapes[][5] = {// batch, length, heads, kv_heads, head_dim
                                         {4, 256, 6, 2, 32},   {1, 1024, 12, 3, 64}, {4, 1024, 12, 3, 64},
                                         {1, 2048, 12, 3, 64}, {1, 1024, 8, 8, 128}, {1, 2048, 16, 4, 128},
                                         {2, 1024, 6, 6, 96}};
  for (const auto& [batch, length, heads, kv_heads, head_dim] : kShapes) {
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    measure(*backend, {batch, length, length, heads, kv_heads, head_dim, scale}, threads, rounds);
  }
}
