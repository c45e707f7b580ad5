#include "base/check.h"
#include "serve/server.h"

namespace quaver {

class CompletionServer::Implementation {};

CompletionServer::CompletionServer(LanguageModel&, Context&, std::optional<Recipe>,
                                   std::shared_ptr<const Tokenizer>, const ServerOptions&) {
  fail(ErrorKind::usage,
       "serve: this build has no HTTP library. Hint: install libcpp-httplib-dev and configure again");
}

CompletionServer::~CompletionServer() = default;

int CompletionServer::start() {
  return 0;
}

void CompletionServer::drain() {}

bool CompletionServer::idle() const {
  return true;
}

void CompletionServer::stop() {}

}  // namespace quaver
