/// Where a run begins: at its first step, or at a checkpoint.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_system.h"
#include "formats/checkpoint_store.h"
#include "train/run_config.h"

namespace quaver {

struct RunOrigin {
  RunConfig config;                        ///< as given, with what the run chose before (fp8.auto)
  bool is_new = true;                      ///< run.dir holds no run yet
  std::string checkpoint;                  ///< the verified folder to go on from; empty: from the first step
  std::vector<DamagedCheckpoint> damaged;  ///< newer ones that did not verify and were set aside
};

/// Decides by config.resume and what run.dir holds:
///
///   "none"   run.dir must hold no run
///   "auto"   its newest whole checkpoint; a run without any begins again
///   a path   that checkpoint, or the newest one of that run; run.dir must hold no run
///
/// Throws Error(usage) for a configuration that differs from the run's in a key that may not change, naming all
/// such keys, and Error(data) when there are checkpoints but none is whole. Removes what interrupted saves left in
/// run.dir.
RunOrigin find_origin(FileSystem& files, const RunConfig& config);

/// Whether a run may go on under another value of this key: paths, how long to train, and how to report.
bool may_change_on_resume(std::string_view key);

}  // namespace quaver
