/// Completions over HTTP in the OpenAI form, for evaluation harnesses and other programs on this machine.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "quaver/language_model.h"
#include "text/tokenizer.h"

namespace quaver {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;  ///< 0: any free one
  std::string model = "quaver";
  std::int64_t max_batch = 16;      ///< texts that are continued at once
  std::int64_t queue = 64;          ///< requests that may wait for a place; more get 503
  std::int64_t max_tokens = 0;      ///< most a request may ask for; 0: as many as model.context has room for
  std::int64_t max_body = 4 << 20;  ///< bytes of a request
  std::chrono::seconds timeout{300};  ///< for one request: after it, it ends with what it has
};

/// POST /v1/completions, GET /v1/models, GET /health.
class CompletionServer {
 public:
  /// The model and the context must outlive it; no other thread may use them meanwhile. Throws Error(usage) for options out of
  /// range, and when this build has no HTTP library.
  CompletionServer(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                   std::shared_ptr<const Tokenizer> tokenizer, const ServerOptions& options);
  ~CompletionServer();  ///< stops it

  /// Listens in threads of its own; returns the port. Throws Error(failure) when the address cannot be had.
  int start();
  /// From now on new requests get 503.
  void drain();
  /// Whether every request has been answered.
  bool idle() const;
  /// Ends all connections.
  void stop();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace quaver
