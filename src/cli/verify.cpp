#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "cli/commands.h"
#include "quaver/error.h"
#include "train/run_verification.h"

namespace quaver::cli {
namespace {

using nlohmann::ordered_json;

void print_json(const RunVerification& run) {
  ordered_json parts = ordered_json::array();
  for (const VerifiedPart& part : run.parts)
    parts.push_back({{"path", part.path}, {"damaged", part.damaged}, {"found", part.found}});
  const ordered_json json = {{"damaged", run.damaged()}, {"parts", std::move(parts)}};
  fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
}

void print_text(const RunVerification& run) {
  for (const VerifiedPart& part : run.parts)
    fmt::print("{}  {}: {}\n", part.damaged ? "DAMAGED" : "ok     ", part.path, part.found);
  fmt::print("{} of {} parts are damaged\n", run.damaged(), run.parts.size());
}

}  // namespace

int verify(const VerifyArguments& arguments) {
  PosixFileSystem files;
  const RunVerification run = verify_run(files, arguments.run);
  arguments.json ? print_json(run) : print_text(run);
  return run.damaged() == 0 ? 0 : static_cast<int>(ErrorKind::data);
}

}  // namespace quaver::cli
