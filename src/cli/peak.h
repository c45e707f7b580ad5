/// The speeds that results refer to.
#pragma once

#include <functional>

#include "train/run_config.h"

namespace quaver::cli {

/// BF16 floating-point operations per second that this machine reached on the run's threads, measured for
/// `seconds`; 0 for backends without such a measure.
double measure_peak(const RunConfig& config, double seconds);

/// Measures the bytes per second that this machine reads from memory on the run's threads, for `seconds` a call; empty
/// for backends without such a measure.
std::function<double()> read_bandwidth_meter(const RunConfig& config, double seconds);

}  // namespace quaver::cli
