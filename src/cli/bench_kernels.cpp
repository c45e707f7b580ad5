#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/threads.h"
#include "cli/commands.h"
#include "cli/product_peak.h"
#include "ops/cpu/peak.h"
#include "ops/kernel_benchmark.h"
#include "quaver/error.h"

namespace quaver::cli {
namespace {

nlohmann::ordered_json to_json(const KernelSpeed& speed) {
  return {{"operation", speed.name},
          {"shape", speed.shape},
          {"threads", speed.threads},
          {"bytes", speed.bytes},
          {"flops", speed.flops},
          {"ms", speed.seconds * 1e3},
          {speed.flops > 0 ? "gflop_per_s" : "gb_per_s", speed.rate() * 1e-9},
          {speed.flops > 0 ? "peak_gflop_per_s" : "copy_gb_per_s", speed.ceiling * 1e-9},
          {"ratio", speed.ratio}};
}

void print_text(const KernelSpeed& speed) {
  fmt::print("{:<30} {:>16} {:>2} {:>8.1f} {:>8.3f} {:>8.1f} {:>8.1f} {:<7} {:>5.2f}\n", speed.name,
             speed.shape, speed.threads, speed.bytes * 1e-6, speed.seconds * 1e3, speed.rate() * 1e-9,
             speed.ceiling * 1e-9, speed.flops > 0 ? "GFLOP/s" : "GB/s", speed.ratio);
}

/// A backend, with the host's threads that it uses; 0 on a device.
struct Use {
  std::shared_ptr<Backend> backend;
  int threads = 0;
};

/// On the host the threads that are asked for, or one and all; a device once.
std::vector<Use> uses_of(const BenchKernelsArguments& arguments) {
  const std::string& name = arguments.backend;
  if (const auto backend = make_backend(name); backend->device() != Device::host) return {{backend, 0}};
  std::set<int> counts{1, available_threads()};
  if (arguments.threads > 0) counts = {arguments.threads};
  std::vector<Use> uses;
  for (const int threads : counts) uses.push_back({make_backend(name, threads, arguments.products), threads});
  return uses;
}

/// A device's peak takes seconds: it is measured once.
std::function<double()> peak_of(const Use& use, Products products) {
  constexpr double kSeconds = 0.01;
  if (use.threads > 0) return [=] { return cpu::measure_bf16_peak(use.threads, kSeconds, products); };
  return [peak = measure_product_peak(*use.backend, kSeconds)] { return peak; };
}

/// A device's caches hold tens of megabytes.
std::vector<std::int64_t> tokens_of(const BenchKernelsArguments& arguments, const Backend& backend) {
  if (!arguments.tokens.empty()) return arguments.tokens;
  return backend.device() == Device::host ? std::vector<std::int64_t>{4096, 16384}
                                          : std::vector<std::int64_t>{131072};
}

}  // namespace

int bench_kernels(const BenchKernelsArguments& arguments) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  const std::vector<Use> uses = uses_of(arguments);
  if (!arguments.json) {
    fmt::print("{}\n{:<30} {:>16} {:>2} {:>8} {:>8} {:>8} {:>8} {:<7} {:>5}\n",
               uses.back().backend->describe(), "operation", "shape", "th", "MB", "ms", "rate", "ceiling", "",
               "ratio");
  }
  std::vector<std::function<double()>> peaks;
  for (const Use& use : uses) peaks.push_back(peak_of(use, arguments.products));
  for (std::int64_t tokens : tokens_of(arguments, *uses.back().backend)) {
    for (const KernelCase& kernel : kernel_cases(tokens)) {
      if (kernel.name.find(arguments.only) == std::string::npos) continue;
      for (std::size_t i = 0; i < uses.size(); ++i) {
        if (kernel.exists && !kernel.exists(*uses[i].backend)) continue;
        const KernelSpeed speed =
            measure_kernel(*uses[i].backend, kernel, uses[i].threads, arguments.rounds, peaks[i]);
        arguments.json ? results.push_back(to_json(speed)) : print_text(speed);
      }
    }
  }
  if (arguments.json) fmt::print("{}\n", results.dump());
  return 0;
}

}  // namespace quaver::cli
