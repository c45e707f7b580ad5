#include "interop/open_model.h"

#include <filesystem>

#include "base/check.h"
#include "interop/hf_model.h"

namespace quaver {

LoadedRun open_model(const std::string& folder, std::span<const std::string> overrides) {
  if (std::filesystem::exists(config_path(folder)) || !std::filesystem::exists(folder + "/config.json"))
    return load_run(folder, overrides);
  HfImportOptions options;
  options.folder = folder;
  options.overrides.assign(overrides.begin(), overrides.end());
  return load_hf_model(options);
}

}  // namespace quaver
