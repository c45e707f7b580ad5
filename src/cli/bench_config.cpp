#include "cli/bench_config.h"

#include <filesystem>

#include "train/run_folder.h"

namespace quaver::cli {

RunConfig load_bench_config(const std::string& path, const std::vector<std::string>& overrides,
                            std::int64_t micro_batch, std::int64_t context) {
  RunConfig config =
      load_run_config(std::filesystem::is_directory(path) ? config_path(path) : path, overrides);
  if (micro_batch > 0) config.train.batch = micro_batch;
  if (context > 0) config.model.context = context;
  return config;
}

}  // namespace quaver::cli
