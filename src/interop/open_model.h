/// Any model that Quaver can compute, wherever it lies.
#pragma once

#include <span>
#include <string>

#include "train/run_folder.h"

namespace quaver {

/// A run folder, a checkpoint's folder, or a Hugging Face folder, which is read as `quaver import` reads it and counts as
/// step 0. Throws Error(data) for a folder that is none of these.
LoadedRun open_model(const std::string& folder, std::span<const std::string> overrides = {});

}  // namespace quaver
