#include "serve/server.h"

#include <fmt/format.h>
#include <httplib.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/check.h"
#include "serve/exchange.h"

namespace quaver {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::ordered_json;

constexpr const char* kJson = "application/json";
constexpr const char* kInvalid = "invalid_request_error";
constexpr const char* kOverloaded = "overloaded_error";
constexpr const char* kServerError = "server_error";

/// How often a connection whose text does not grow is looked at.
constexpr std::chrono::milliseconds kWatch{50};
/// A client that has gone is noticed when something is sent. After so long without text it is something that means nothing: a
/// comment in a stream, a space before a JSON object.
constexpr std::chrono::milliseconds kKeepAlive{200};

/// Connections that may wait to be accepted (the system's limit cuts it). The library asks for 5: of more clients that come at
/// once, some would wait a second until they try again.
constexpr int kBacklog = 1024;

void refuse(httplib::Response& response, int status, const std::string& message, const char* type) {
  response.status = status;
  response.set_content(error_json(message, type), kJson);
  if (status == 503) response.set_header("Retry-After", "1");
}

/// Adds one to a count while it lives.
class Counted {
 public:
  explicit Counted(std::atomic<int>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<int>& count_;
};

ServerOptions checked(ServerOptions options, const ModelConfig& config) {
  require(options.max_batch >= 1 && options.max_batch <= 1024, "--max-batch: expected 1 to 1024, found {}",
          options.max_batch);
  require(options.queue >= 0 && options.queue <= 4096, "--queue: expected 0 to 4096, found {}",
          options.queue);
  require(options.max_body >= 1024, "--max-body: expected at least 1024 bytes, found {}", options.max_body);
  require(options.timeout.count() >= 1, "--timeout: expected at least 1 second, found {}",
          options.timeout.count());
  require(options.port >= 0 && options.port <= 65535, "--port: expected 0 to 65535, found {}", options.port);
  if (options.max_tokens <= 0) options.max_tokens = config.context;
  return options;
}

}  // namespace

class CompletionServer::Implementation {
 public:
  Implementation(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                 std::shared_ptr<const Tokenizer> tokenizer, const ServerOptions& options)
      : options_(checked(options, model.config())),
        limits_{model.config().context, options_.max_tokens},
        tokenizer_(std::move(tokenizer)),
        scheduler_(model, context, std::move(recipe),
                   {options_.max_batch, options_.queue, tokenizer_->vocab()}) {
    // Every request holds a thread while it waits: enough of them that too many requests are answered, with 503.
    const auto threads = static_cast<std::size_t>(options_.max_batch + options_.queue + 8);
    server_.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
    server_.set_keep_alive_max_count(1);  // an idle connection would hold a thread
    server_.set_read_timeout(10);
    server_.set_write_timeout(10);
    server_.set_socket_options([this](socket_t socket) {
      // A port of a server that has just ended may be taken; one of a server that lives may not, which the library's own options
      // allow.
      const int on = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      socket_ = socket;
    });
    server_.set_payload_max_length(static_cast<std::size_t>(options_.max_body));
    add_routes();
  }

  ~Implementation() { stop(); }

  int start() {
    const int port = bind();
    if (port <= 0)
      fail(ErrorKind::failure,
           "serve: cannot listen on {} port {}. Hint: is another program there? --port 0 takes a free port",
           options_.host, options_.port);
    ::listen(socket_, kBacklog);  // again, with more room
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return port;
  }

  void drain() { draining_ = true; }
  bool idle() const { return requests_ == 0; }
  void stop() {
    if (!thread_.joinable()) return;
    draining_ = stopping_ = true;
    server_.stop();
    thread_.join();
  }

 private:
  /// 0 or less: not possible.
  int bind() {
    if (options_.port == 0) return server_.bind_to_any_port(options_.host);
    return server_.bind_to_port(options_.host, options_.port) ? options_.port : -1;
  }

  void add_routes() {
    server_.Get("/health", [this](const auto&, auto& response) { health(response); });
    server_.Get("/v1/models", [this](const auto&, auto& response) { models(response); });
    server_.Post("/v1/completions", [this](const auto&, auto& response,
                                           const httplib::ContentReader& content) {
      std::string body;
      const bool read = content([&](const char* data, std::size_t size) {
        body.append(data, size);
        return body.size() <= static_cast<std::size_t>(options_.max_body);
      });
      if (body.size() > static_cast<std::size_t>(options_.max_body) || response.status == 413)
        return refuse(response, 413, fmt::format("body: more than {} bytes", options_.max_body), kInvalid);
      if (!read) return refuse(response, 400, "body: it ended early", kInvalid);
      completions(body, response);
    });
    const auto not_allowed = [](const auto&, auto& response) {
      refuse(response, 405, "this address takes another method", kInvalid);
    };
    server_.Get("/v1/completions", not_allowed);
    server_.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
      if (!response.body.empty()) return;
      const int status = response.status;
      const std::string reason = status == 404   ? "there is nothing at " + request.path
                                 : status == 413 ? "body: it is too large"
                                                 : "the request was not understood";
      response.set_content(error_json(reason, status < 500 ? kInvalid : kServerError), kJson);
    });
  }

  void health(httplib::Response& response) {
    const Scheduler::Load load = scheduler_.load();
    const ordered_json json = {{"status", draining_ ? "stopping" : "ok"},
                               {"model", options_.model},
                               {"running", load.texts},
                               {"waiting", load.waiting}};
    if (draining_) response.status = 503;
    response.set_content(json.dump(), kJson);
  }

  void models(httplib::Response& response) const {
    const ordered_json model = {{"id", options_.model},
                                {"object", "model"},
                                {"created", 0},
                                {"owned_by", "quaver"},
                                {"max_model_len", limits_.context}};
    const ordered_json json = {{"object", "list"}, {"data", ordered_json::array({model})}};
    response.set_content(json.dump(), kJson);
  }

  void completions(const std::string& body, httplib::Response& response) try {
    auto counted = std::make_shared<Counted>(requests_);
    if (draining_) return refuse(response, 503, "the server is stopping", kOverloaded);
    CompletionRequest request = parse_completion_request(body, *tokenizer_, limits_);
    if (!request.model.empty() && request.model != options_.model) {
      return refuse(response, 404,
                    fmt::format("model: expected \"{}\", found \"{}\"", options_.model, request.model),
                    kInvalid);
    }
    const auto completion = scheduler_.submit(request.texts(*tokenizer_));
    if (!completion)
      return refuse(response, 503, fmt::format("{} requests are waiting already", options_.queue),
                    kOverloaded);
    const bool stream = request.stream;
    const auto exchange =
        std::make_shared<Exchange>(std::move(request), completion, tokenizer_, options_.model, next_id_++);
    const Clock::time_point deadline = Clock::now() + options_.timeout;
    while (!exchange->begun() && Clock::now() < deadline && !stopping_)
      exchange->advance(Clock::now() + kWatch, deadline);
    if (!exchange->begun())
      return refuse(response, 503, "no place became free within the time limit", kOverloaded);
    if (!exchange->failure().empty()) return refuse(response, 500, exchange->failure(), kServerError);
    answer(response, exchange, stream, deadline, counted);
  } catch (const Error& error) {
    const bool clients = error.kind() == ErrorKind::usage || error.kind() == ErrorKind::data;
    refuse(response, clients ? 400 : 500, error.what(), clients ? kInvalid : kServerError);
  } catch (const std::exception& error) {
    refuse(response, 500, error.what(), kServerError);
  }

  /// Sends the answer as it comes. When sending fails the exchange goes, and its places become free.
  void answer(httplib::Response& response, std::shared_ptr<Exchange> exchange, bool stream,
              Clock::time_point deadline, std::shared_ptr<Counted> counted) const {
    response.set_chunked_content_provider(
        stream ? "text/event-stream" : kJson,
        [=, begun = false, sent = Clock::now()](std::size_t, httplib::DataSink& sink) mutable {
          // What the first step brought is sent at once.
          if (std::exchange(begun, true) && !exchange->finished())
            exchange->advance(Clock::now() + kWatch, deadline);
          std::string text = stream                 ? exchange->take_events()
                             : exchange->finished() ? exchange->response()
                                                    : "";
          if (text.empty() && Clock::now() - sent >= kKeepAlive) text = stream ? ":\n\n" : " ";
          if (!text.empty()) {
            if (!sink.write(text.data(), text.size())) return false;
            sent = Clock::now();
          }
          if (exchange->finished()) sink.done();
          return true;
        },
        [counted](bool) {});
  }

  ServerOptions options_;
  CompletionLimits limits_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Scheduler scheduler_;
  httplib::Server server_;
  socket_t socket_ = INVALID_SOCKET;  // the last one that was made: the one that listens
  std::thread thread_;
  std::atomic<bool> draining_ = false, stopping_ = false;
  std::atomic<int> requests_ = 0;
  std::atomic<std::uint64_t> next_id_ = 1;
};

CompletionServer::CompletionServer(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                                   std::shared_ptr<const Tokenizer> tokenizer, const ServerOptions& options)
    : implementation_(std::make_unique<Implementation>(model, context, std::move(recipe),
                                                       std::move(tokenizer), options)) {}

CompletionServer::~CompletionServer() = default;

int CompletionServer::start() {
  return implementation_->start();
}

void CompletionServer::drain() {
  implementation_->drain();
}

bool CompletionServer::idle() const {
  return implementation_->idle();
}

void CompletionServer::stop() {
  implementation_->stop();
}

}  // namespace quaver
