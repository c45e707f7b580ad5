#include "cli/peak.h"

#include "base/threads.h"
#include "ops/cpu/peak.h"

namespace quaver::cli {

double measure_peak(const RunConfig& config, double seconds) {
  if (config.backend != "cpu") return 0;
  return cpu::measure_bf16_peak(config.threads > 0 ? config.threads : available_threads(), seconds);
}

}  // namespace quaver::cli
