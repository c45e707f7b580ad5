/// Attention of a backend, forward and backward; the CPU's beside the raw dot-product loop, in turn. Only work that a
/// query sees is counted: 2 products forward and 5 backward of head_dim multiply-adds a query, key and head.
///
/// usage: bench_attention [--backend cpu|cuda] [--shapes models|sweep] [--document N] [--threads N] [--rounds N]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "normal_numbers.h"
#include "ops/cpu/peak.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr double kSecondsPerTurn = 0.02;

double seconds_of(const std::function<void()>& body, int threads) {
  const BusyTimer timer(threads);
  body();
  return timer.seconds();
}

struct Options {
  std::string backend = "cpu", shapes = "models";
  int threads = 0, rounds = 9;
  std::int64_t document = 0;
};

/// Runs until the device has nothing left to do: a copy to the host waits for what came before it.
void finish(Backend& backend, const Tensor& any) {
  float value = 0;
  backend.copy_to_host(any.slice(0, 1), &value);
}

/// Prints the rate; returns the share of the CPU's peak, 0 on a device.
double measure(const char* name, const std::function<void()>& run, const std::function<void()>& wait,
               double operations, const Options& options) {
  const auto timed = [&](int repeats) {
    return seconds_of(
        [&] {
          for (int i = 0; i < repeats; ++i) run();
          wait();
        },
        options.backend == "cpu" ? options.threads : 0);
  };
  timed(1);
  const int repeats = std::max(1, static_cast<int>(kSecondsPerTurn / std::min(timed(1), timed(1))));
  const bool cpu = options.backend == "cpu";
  std::vector<double> rates, shares;
  for (int round = 0; round < options.rounds; ++round) {
    const double peak = cpu ? cpu::measure_bf16_peak(options.threads, kSecondsPerTurn) : 0;
    rates.push_back(operations * repeats / timed(repeats));
    shares.push_back(cpu ? rates.back() / peak : 0);
  }
  if (cpu) {
    fmt::print("  {:8} {:5.0f} GFLOP/s {:3.0f}%", name, median(rates) * 1e-9, median(shares) * 100);
  } else {
    fmt::print("  {:8} {:5.3f} ms {:4.0f} TFLOP/s", name, operations / median(rates) * 1e3,
               median(rates) * 1e-12);
  }
  return median(shares);
}

/// Documents of `length` positions, counted from each sequence's start.
Tensor first_keys(Backend& backend, const AttentionShape& shape, std::int64_t length) {
  std::vector<std::int32_t> keys;
  for (std::int64_t row = 0; row < shape.batch * shape.query_len; ++row) {
    keys.push_back(static_cast<std::int32_t>(row % shape.query_len / length * length));
  }
  return upload(backend, keys, {shape.batch * shape.query_len});
}

struct Shares {
  std::vector<double> forward, backward;
};

void measure(Backend& backend, const AttentionShape& shape, const Options& options, Shares& shares) {
  const std::int64_t rows = shape.batch * shape.query_len, q_cols = shape.heads * shape.head_dim,
                     k_cols = shape.kv_heads * shape.head_dim;
  const Tensor q = normal(backend, rows, q_cols, 1), k = normal(backend, rows, k_cols, 2),
               v = normal(backend, rows, k_cols, 3), dout = normal(backend, rows, q_cols, 4);
  const Tensor out = backend.allocate(DType::bf16, q.shape()), dq = backend.allocate(DType::bf16, q.shape()),
               dk = backend.allocate(DType::bf16, k.shape()), dv = backend.allocate(DType::bf16, k.shape()),
               lse = backend.allocate(DType::f32, {rows, shape.heads});
  const Tensor first_key = options.document == 0 ? Tensor() : first_keys(backend, shape, options.document);
  double seen = 0;
  for (std::int64_t i = 0; i < shape.query_len; ++i) {
    seen += static_cast<double>(options.document == 0 ? i + 1 : i % options.document + 1);
  }
  const double product = 2 * static_cast<double>(shape.batch * shape.heads * shape.head_dim) * seen;
  const Tensor flag = backend.allocate(DType::f32, {1});
  const auto wait = [&] { finish(backend, flag); };
  fmt::print("{:2} x {:4}, heads {:2}/{}, head_dim {:3} ", shape.batch, shape.query_len, shape.heads,
             shape.kv_heads, shape.head_dim);
  shares.forward.push_back(measure(
      "forward", [&] { backend.attention(shape, q, k, v, first_key, out, lse); }, wait, 2 * product,
      options));
  shares.backward.push_back(measure(
      "backward", [&] { backend.attention_backward(shape, dout, q, k, v, first_key, out, lse, dq, dk, dv); },
      wait, 5 * product, options));
  fmt::print("\n");
  std::fflush(stdout);
}

using Dims = std::array<std::int64_t, 5>;  // batch, length, heads, kv_heads, head_dim

/// Every head size, for short and long sequences.
std::vector<Dims> sweep() {
  std::vector<Dims> dims;
  for (const std::int64_t length : {16, 64, 256, 512, 1024}) {
    for (const std::int64_t head_dim : {32, 64, 96, 128, 160, 256}) {
      dims.push_back({1024 / length, length, 8, 2, head_dim});
    }
  }
  return dims;
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  using namespace quaver;
  CLI::App app("Attention: rate of the work that is seen; on the CPU also the share of the dot-product peak");
  Options options;
  app.add_option("--backend", options.backend)->capture_default_str()->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--shapes", options.shapes, "of models, or a sweep over head sizes and lengths")
      ->capture_default_str()
      ->check(CLI::IsMember({"models", "sweep"}));
  app.add_option("--document", options.document, "length of documents that see only themselves; 0: none")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "0: all processors")->capture_default_str();
  app.add_option("--rounds", options.rounds, "rounds; medians are printed")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto backend = make_backend(options.backend, options.threads);
  fmt::print("{}\n", backend->describe());
  const std::vector<Dims> of_cpu = {{4, 256, 6, 2, 32},   {1, 1024, 12, 3, 64}, {4, 1024, 12, 3, 64},
                                    {1, 2048, 12, 3, 64}, {1, 1024, 8, 8, 128}, {1, 2048, 16, 4, 128},
                                    {2, 1024, 6, 6, 96}};
  const std::vector<Dims> of_gpu = {{12, 2048, 16, 4, 128}, {4, 2048, 16, 4, 128}, {1, 2048, 16, 4, 128},
                                    {1, 512, 16, 4, 128},   {12, 2048, 32, 8, 64}, {12, 1024, 12, 3, 64},
                                    {32, 2048, 12, 3, 64},  {1, 512, 12, 3, 64},   {12, 2048, 16, 4, 96}};
  const bool cpu = options.backend == "cpu";
  Shares shares;
  for (const auto& [batch, length, heads, kv_heads, head_dim] : options.shapes == "sweep" ? sweep()
                                                                : cpu                     ? of_cpu
                                                                                          : of_gpu) {
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    measure(*backend, {batch, length, length, heads, kv_heads, head_dim, scale}, options, shares);
  }
  if (!cpu) return 0;
  for (const auto& [name, of] : {std::pair{"forward", shares.forward}, {"backward", shares.backward}}) {
    fmt::print("{:8} median {:.0f}%, least {:.0f}%\n", name, median(of) * 100,
               *std::min_element(of.begin(), of.end()) * 100);
  }
}
