#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/threads.h"
#include "cli/commands.h"
#include "ops/kernel_benchmark.h"
#include "quaver/error.h"

namespace quaver::cli {
namespace {

nlohmann::ordered_json to_json(const KernelSpeed& speed) {
  return {{"operation", speed.name},
          {"shape", speed.shape},
          {"threads", speed.threads},
          {"bytes", speed.bytes},
          {"ms", speed.seconds * 1e3},
          {"gb_per_s", speed.bytes_per_second() * 1e-9},
          {"copy_gb_per_s", speed.copy_bytes_per_second * 1e-9},
          {"ratio", speed.ratio}};
}

void print_text(const KernelSpeed& speed) {
  fmt::print("{:<30} {:>13} {:>2} {:>8.1f} {:>8.3f} {:>8.1f} {:>8.1f} {:>6.2f}\n", speed.name, speed.shape,
             speed.threads, speed.bytes * 1e-6, speed.seconds * 1e3, speed.bytes_per_second() * 1e-9,
             speed.copy_bytes_per_second * 1e-9, speed.ratio);
}

/// A backend, with the host's threads that it uses; 0 on a device.
struct Use {
  std::shared_ptr<Backend> backend;
  int threads = 0;
};

/// On the host one thread and all; a device once.
std::vector<Use> uses_of(const std::string& name) {
  if (const auto backend = make_backend(name); backend->device() != Device::host) return {{backend, 0}};
  std::vector<Use> uses;
  for (const int threads : std::set<int>{1, available_threads()})
    uses.push_back({make_backend(name, threads), threads});
  return uses;
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
  const std::vector<Use> uses = uses_of(arguments.backend);
  if (!arguments.json) {
    fmt::print("{}\n{:<30} {:>13} {:>2} {:>8} {:>8} {:>8} {:>8} {:>6}\n", uses.back().backend->describe(),
               "operation", "shape", "th", "MB", "ms", "GB/s", "copy", "ratio");
  }
  for (std::int64_t tokens : tokens_of(arguments, *uses.back().backend)) {
    for (const KernelCase& kernel : kernel_cases(tokens)) {
      if (kernel.name.find(arguments.only) == std::string::npos) continue;
      for (const Use& use : uses) {
        const KernelSpeed speed = measure_kernel(*use.backend, kernel, use.threads, arguments.rounds);
        arguments.json ? results.push_back(to_json(speed)) : print_text(speed);
      }
    }
  }
  if (arguments.json) fmt::print("{}\n", results.dump());
  return 0;
}

}  // namespace quaver::cli
