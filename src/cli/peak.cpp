#include "cli/peak.h"

#include <memory>

#include "base/threads.h"
#include "cli/product_peak.h"
#include "ops/cpu/peak.h"

namespace quaver::cli {

namespace {

int threads_of(const RunConfig& config) {
  return config.threads > 0 ? config.threads : available_threads();
}

}  // namespace

double measure_peak(const RunConfig& config, double seconds) {
  if (config.backend == "cuda") return measure_product_peak(*make_backend("cuda"), seconds);
  return config.backend == "cpu" ? cpu::measure_bf16_peak(threads_of(config), seconds, config.products) : 0;
}

std::function<double()> read_bandwidth_meter(const RunConfig& config, double seconds) {
  if (config.backend != "cpu") return {};
  return [meter = std::make_shared<cpu::ReadBandwidth>(threads_of(config)), seconds] {
    return meter->measure(seconds);
  };
}

}  // namespace quaver::cli
