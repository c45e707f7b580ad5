#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/bench_config.h"
#include "cli/commands.h"
#include "quaver/language_model.h"
#include "train/fp8_auto.h"
#include "train/fp8_policy.h"
#include "train/linear_timer.h"
#include "train/run_precision.h"

namespace quaver::cli {
namespace {

constexpr const char* kNames[] = {"fprop", "dgrad", "wgrad"};

/// One Linear's shape and its times.
struct Row {
  std::string name;
  std::int64_t rows, in, out;
  LinearTimes times;

  double operations() const {
    return 2.0 * static_cast<double>(rows) * static_cast<double>(in) * static_cast<double>(out);
  }
  double with_casts(bool fp8) const { return times.total({fp8, fp8, fp8}); }
};

std::vector<Row> measure(const BenchGemmArguments& arguments, const RunConfig& config, Backend& backend,
                         const std::shared_ptr<Backend>& shared) {
  const Recipe recipe = run_recipe(config).value_or(DelayedScaling{});
  std::vector<Row> rows;
  {
    LanguageModel model(shared, config.model, config.train.seed);
    apply_fp8_policy(model, config.fp8, config.model.layers);
    for (const MeasuredLinears& found : measure_linears(
             backend, model, recipe, config.train.batch * config.model.context, config.train.accumulation))
      if (found.allowed != std::array<bool, 3>{})
        rows.push_back({found.names.front(), found.rows, found.in_features, found.out_features, found.times});
  }
  if (const std::int64_t n = arguments.square; n > 0)
    rows.push_back({"square", n, n, n, time_linear(backend, recipe, {n, n, n}, 1, 1)});
  return rows;
}

nlohmann::ordered_json to_json(const Row& row) {
  nlohmann::ordered_json json = {{"linear", row.name}, {"rows", row.rows}, {"in", row.in}, {"out", row.out}};
  for (std::size_t i = 0; i < 3; ++i)
    json[kNames[i]] = {{"fp8_ms", row.times.fp8[i] * 1e3},
                       {"fp8_flops", row.operations() / row.times.fp8[i]},
                       {"bf16_ms", row.times.bf16[i] * 1e3},
                       {"bf16_flops", row.operations() / row.times.bf16[i]}};
  json["with_casts"] = {{"fp8_ms", row.with_casts(true) * 1e3}, {"bf16_ms", row.with_casts(false) * 1e3}};
  return json;
}

void print_text(const Row& row) {
  for (std::size_t i = 0; i < 3; ++i) {
    const double fp8 = row.times.fp8[i], bf16 = row.times.bf16[i];
    fmt::print("{:<28} {:>22} {:<10} {:>9.3f} {:>8.1f} {:>9.3f} {:>8.1f} {:>9.2f}\n", i == 0 ? row.name : "",
               i == 0 ? fmt::format("{} x {} -> {}", row.rows, row.in, row.out) : "", kNames[i], fp8 * 1e3,
               row.operations() / fp8 * 1e-12, bf16 * 1e3, row.operations() / bf16 * 1e-12, bf16 / fp8);
  }
  const double fp8 = row.with_casts(true), bf16 = row.with_casts(false);
  fmt::print("{:<28} {:>22} {:<10} {:>9.3f} {:>8.1f} {:>9.3f} {:>8.1f} {:>9.2f}\n", "", "", "with casts",
             fp8 * 1e3, 3 * row.operations() / fp8 * 1e-12, bf16 * 1e3, 3 * row.operations() / bf16 * 1e-12,
             bf16 / fp8);
}

}  // namespace

int bench_gemm(const BenchGemmArguments& arguments) {
  RunConfig config =
      load_bench_config(arguments.config, arguments.overrides, arguments.micro_batch, arguments.context);
  if (!arguments.backend.empty()) config.backend = arguments.backend;
  config.precision = Precision::fp8;
  const auto backend = make_backend(config.backend, config.threads, config.products);
  const std::vector<Row> rows = measure(arguments, config, *backend, backend);
  if (arguments.json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const Row& row : rows) json.push_back(to_json(row));
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{}\n{:<28} {:>22} {:<10} {:>9} {:>8} {:>9} {:>8} {:>9}\n", backend->describe(), "linear",
             "shape", "product", "FP8 ms", "TFLOP/s", "BF16 ms", "TFLOP/s", "BF16/FP8");
  for (const Row& row : rows) print_text(row);
  return 0;
}

}  // namespace quaver::cli
