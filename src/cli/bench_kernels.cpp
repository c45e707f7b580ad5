#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

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
  fmt::print("{:<30} {:>12} {:>2} {:>8.1f} {:>8.3f} {:>8.1f} {:>8.1f} {:>6.2f}\n", speed.name, speed.shape,
             speed.threads, speed.bytes * 1e-6, speed.seconds * 1e3, speed.bytes_per_second() * 1e-9,
             speed.copy_bytes_per_second * 1e-9, speed.ratio);
}

}  // namespace

int bench_kernels(const BenchKernelsArguments& arguments) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  if (!arguments.json) {
    fmt::print("{}\n{:<30} {:>12} {:>2} {:>8} {:>8} {:>8} {:>8} {:>6}\n", make_backend("cpu")->describe(),
               "operation", "shape", "th", "MB", "ms", "GB/s", "copy", "ratio");
  }
  for (std::int64_t tokens : arguments.tokens) {
    for (const KernelCase& kernel : kernel_cases(tokens)) {
      if (kernel.name.find(arguments.only) == std::string::npos) continue;
      for (int threads : std::set<int>{1, available_threads()}) {
        const KernelSpeed speed = measure_kernel(kernel, threads, arguments.rounds);
        arguments.json ? results.push_back(to_json(speed)) : print_text(speed);
      }
    }
  }
  if (arguments.json) fmt::print("{}\n", results.dump());
  return 0;
}

}  // namespace quaver::cli
