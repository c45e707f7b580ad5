/// The configuration of a benchmark.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/run_config.h"

namespace quaver::cli {

/// A run file or the one of a run folder, with overrides; micro_batch and context replace train.batch and
/// model.context unless 0.
RunConfig load_bench_config(const std::string& path, const std::vector<std::string>& overrides,
                            std::int64_t micro_batch = 0, std::int64_t context = 0);

}  // namespace quaver::cli
