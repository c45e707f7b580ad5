/// The speed that MFU refers to.
#pragma once

#include "train/run_config.h"

namespace quaver::cli {

/// BF16 floating-point operations per second that this machine reached on the run's threads, measured for
/// `seconds`; 0 for backends without such a measure.
double measure_peak(const RunConfig& config, double seconds);

}  // namespace quaver::cli
