/// Random tokens of the shape of a run's micro-batches, for benchmarks.
#pragma once

#include <cstdint>

#include "text/batches.h"
#include "train/run_config.h"

namespace quaver {

/// config.train.batch sequences of config.model.context tokens, each one document; a function of config.train.seed
/// and `index`.
HostBatch synthetic_batch(const RunConfig& config, std::uint64_t index);

}  // namespace quaver
