#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "cli/commands.h"
#include "interop/open_model.h"
#include "quaver/backend.h"
#include "serve/server.h"
#include "text/token_data.h"
#include "train/run_precision.h"

namespace quaver::cli {
namespace {

/// SIGINT and SIGTERM wait to be fetched, in this thread and in those it makes while this lives.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~StopSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  void wait() const {
    int signal = 0;
    sigwait(&signals_, &signal);
  }
  bool arrives_within(std::chrono::milliseconds time) const {
    const timespec limit{0, std::chrono::nanoseconds(time).count()};
    return sigtimedwait(&signals_, nullptr, &limit) > 0;
  }

 private:
  sigset_t signals_{}, before_{};
};

std::string model_name(const ServeArguments& arguments) {
  if (!arguments.name.empty()) return arguments.name;
  return std::filesystem::absolute(arguments.run + "/.").lexically_normal().parent_path().filename();
}

void announce(const ServeArguments& arguments, const std::string& name, int port) {
  const std::string address = fmt::format("http://{}:{}", arguments.host, port);
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"address", address}, {"port", port}, {"model", name}};
    fmt::print("{}\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("{} answers at {}/v1/completions\n", name, address);
  }
  std::fflush(stdout);
}

}  // namespace

int serve(const ServeArguments& arguments) {
  const StopSignals signals;
  const LoadedRun run = open_model(arguments.run, arguments.overrides);
  const auto tokenizer = load_tokenizer(run.config.data);
  require(tokenizer != nullptr, "serve: the tokenizer of {} is not known. Hint: data.tokenizer=PATH",
          arguments.run);
  Context context(run.model->backend(), activation_dtype(run.config.precision));
  ServerOptions options;
  options.host = arguments.host;
  options.port = arguments.port;
  options.model = model_name(arguments);
  options.max_batch = arguments.max_batch;
  options.queue = arguments.queue;
  options.max_tokens = arguments.max_tokens;
  options.max_body = arguments.max_body;
  options.timeout = std::chrono::seconds(arguments.timeout);
  CompletionServer server(*run.model, context, run_recipe(run.config), tokenizer, options);
  announce(arguments, options.model, server.start());

  signals.wait();
  server.drain();
  if (!server.idle()) fmt::print(stderr, "serve: finishing what was begun; a second signal ends it\n");
  while (!server.idle() && !signals.arrives_within(std::chrono::milliseconds(50))) {
  }
  server.stop();
  return 0;
}

}  // namespace quaver::cli
