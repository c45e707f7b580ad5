/// The server over loopback: what it answers, and that nobody's answer depends on the others. Nothing here waits for a time
/// to pass.
#include "serve/server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/random.h"
#include "generate/generator.h"
#include "http_client.h"
#include "support/errors.h"
#include "train/loss.h"
#include "train/training_support.h"

namespace quaver {
namespace {

using nlohmann::json;

class ServerTest : public testing::Test {
 protected:
  ServerTest() { make_the_document_token_unlikely(); }

  void start(ServerOptions options = {}) {
    options.port = 0;
    options.model = "micro";
    server.emplace(model, context, recipe, tokenizer, options);
    port = server->start();
  }
  json complete(const json& body) const {
    const HttpResponse response = http_post(port, body.dump());
    EXPECT_EQ(response.status, 200) << response.body;
    return json::parse(response.body);
  }
  /// A request of half a million tokens: none of these tests waits for its end.
  static json endless() {
    return {{"prompt", "x"},    {"max_tokens", 4000}, {"n", 128},
            {"temperature", 1}, {"stream", true},     {"seed", 1}};
  }
  int running() const { return json::parse(http_get(port, "/health").body).at("running"); }
  /// Until as many texts have a place, or 20 seconds.
  void wait_for_running(int count) const {
    for (int i = 0; i < 2000 && running() != count; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(running(), count);
  }

  static ModelConfig model_config(const TemporaryFolder& folder) {
    ModelConfig config = micro_config(folder).model;
    config.context = 4096;
    config.vocab = 260;  // more than the tokenizer has
    config.init_std = 0.3f;
    config.head_bias = true;
    return config;
  }
  /// So that no text ends by itself.
  void make_the_document_token_unlikely() {
    struct Find : ModuleVisitor {
      void parameter(const std::string& name, Parameter& parameter) override {
        if (name == "lm_head.bias") bias = &parameter;
      }
      Parameter* bias = nullptr;
    } find;
    model.visit("", find);
    backend->fill(find.bias->value.slice(256, 1), -1e4);
    ++find.bias->version;
  }

  TemporaryFolder folder;
  std::shared_ptr<const Tokenizer> tokenizer = load_tokenizer("bytes");
  std::shared_ptr<Backend> backend = make_backend("cpu", 1);
  LanguageModel model{backend, model_config(folder), 3};
  Context context{*backend};
  std::optional<Recipe> recipe = DelayedScaling{};
  std::optional<CompletionServer> server;
  int port = 0;
};

TEST_F(ServerTest, SaysWhatItServes) {
  start();
  EXPECT_EQ(json::parse(http_get(port, "/health").body),
            (json{{"status", "ok"}, {"model", "micro"}, {"running", 0}, {"waiting", 0}}));
  EXPECT_EQ(json::parse(http_get(port, "/v1/models").body).at("data").at(0).at("id"), "micro");
}

TEST_F(ServerTest, CompletesAsGenerateDoes) {
  start();
  const json answer = complete({{"model", "micro"}, {"prompt", "hello"}, {"max_tokens", 20}, {"seed", 7}});
  EXPECT_EQ(answer.at("object"), "text_completion");
  EXPECT_EQ(answer.at("seed"), 7);
  EXPECT_EQ(answer.at("usage"),
            (json{{"prompt_tokens", 6}, {"completion_tokens", 20}, {"total_tokens", 26}}));
  server.reset();
  SampleOptions options;
  options.tokens = 20;
  options.sampling.temperature = 1;
  options.seed = 7;
  std::string text;
  const std::vector<std::string> prompts = {"hello"};
  generate(model, context, recipe, *tokenizer, prompts, options,
           [&](std::size_t, std::string_view part, bool) { text += part; });
  const json expected = json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace));
  EXPECT_EQ(answer.at("choices").at(0).at("text"), expected);
  EXPECT_EQ(answer.at("choices").at(0).at("finish_reason"), "length");
}

TEST_F(ServerTest, ConcurrentRequestsGetTheBitsOfEachAlone) {
  ServerOptions options;
  options.max_batch = 5;  // fewer places than texts
  start(options);
  std::vector<json> bodies;
  for (int i = 0; i < 8; ++i) {
    bodies.push_back({{"prompt", std::string(static_cast<std::size_t>(40 * i), 'p') + "q"},
                      {"max_tokens", 5 + 3 * i},
                      {"temperature", 0.2 * i},
                      {"top_p", 0.95},
                      {"logprobs", 3},
                      {"echo", i % 2 == 0},
                      {"n", 1 + i % 3},
                      {"seed", i}});
    if (i % 4 == 3) bodies.back()["prompt"] = json::array({json::array({1, 2, 3}), "other"});
    if (i % 3 == 1) bodies.back()["stop"] = {"a", "zz"};
  }
  std::vector<json> alone, together(bodies.size());
  for (const json& body : bodies) alone.push_back(complete(body).at("choices"));
  std::vector<std::thread> clients;
  for (std::size_t i = 0; i < bodies.size(); ++i)
    clients.emplace_back([&, i] { together[i] = complete(bodies[i]).at("choices"); });
  for (std::thread& client : clients) client.join();
  for (std::size_t i = 0; i < bodies.size(); ++i) EXPECT_EQ(together[i], alone[i]) << i;
  EXPECT_EQ(alone[2].size(), 3u);
  EXPECT_EQ(alone[3].size(), 2u);
  EXPECT_NE(alone[5][0].at("text"), alone[5][1].at("text")) << "choices differ";
}

/// What lm-eval's local-completions sends and reads: echo, logprobs, max_tokens 0 or 1, token ids.
TEST_F(ServerTest, LogprobsAreThoseOfADirectForward) {
  start();
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < 30; ++i) tokens.push_back('a' + (i * 7) % 26);
  const json answer = complete({{"prompt", tokens},
                                {"max_tokens", 1},
                                {"logprobs", 2},
                                {"echo", true},
                                {"temperature", 0},
                                {"seed", 1234}});
  const json ids_only = complete({{"prompt", tokens}, {"max_tokens", 0}, {"logprobs", 2}, {"echo", true}});
  const json text =
      complete({{"prompt", tokenizer->decode(tokens)}, {"max_tokens", 0}, {"logprobs", 2}, {"echo", true}});
  server.reset();

  std::vector<std::int32_t> positions(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) positions[i] = static_cast<std::int32_t>(i);
  const NoGradients evaluation(context);
  const std::vector<float> logits = download(
      *backend, forward_logits(model, context, recipe,
                               {1, 30, upload(*backend, tokens, {30}), upload(*backend, positions, {30}), {}},
                               nullptr));
  const json& scores = answer.at("choices").at(0).at("logprobs");
  ASSERT_EQ(scores.at("tokens").size(), 31u);
  EXPECT_TRUE(scores.at("token_logprobs").at(0).is_null());
  EXPECT_TRUE(scores.at("top_logprobs").at(0).is_null());
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const std::span<const float> row = std::span(logits).subspan(i * 260, 260);
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit));
    const double expected = row[static_cast<std::size_t>(tokens[i + 1])] - std::log(sum);
    EXPECT_NEAR(scores.at("token_logprobs").at(i + 1).get<double>(), expected, 1e-5) << i;
    EXPECT_EQ(scores.at("tokens").at(i + 1), std::string(1, static_cast<char>(tokens[i + 1])));
    EXPECT_EQ(scores.at("text_offset").at(i + 1), i + 1);
    // How a harness sees whether the token was the likeliest.
    double best = -1e9;
    for (const auto& [word, value] : scores.at("top_logprobs").at(i + 1).items())
      best = std::max(best, value.get<double>());
    EXPECT_EQ(best == scores.at("token_logprobs").at(i + 1).get<double>(),
              *std::max_element(row.begin(), row.end()) == row[static_cast<std::size_t>(tokens[i + 1])]);
  }
  const json& only = ids_only.at("choices").at(0);
  EXPECT_EQ(only.at("text"), tokenizer->decode(tokens));
  EXPECT_EQ(only.at("logprobs").at("token_logprobs").size(), 30u);
  for (std::size_t i = 1; i < 30; ++i)
    EXPECT_EQ(only.at("logprobs").at("token_logprobs").at(i), scores.at("token_logprobs").at(i));
  EXPECT_EQ(ids_only.at("usage").at("completion_tokens"), 0);
  // A document token stands before text: every token of the text has a probability, and the token is not echoed.
  EXPECT_EQ(text.at("choices").at(0).at("logprobs").at("token_logprobs").size(), 30u);
  EXPECT_TRUE(text.at("choices").at(0).at("logprobs").at("token_logprobs").at(0).is_number());
}

TEST_F(ServerTest, StreamsTheSameText) {
  start();
  json body = {{"prompt", "hello"}, {"max_tokens", 40}, {"seed", 3},  {"logprobs", 1},
               {"echo", true},      {"n", 2},           {"stop", "q"}};
  const json whole = complete(body);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const HttpResponse response = http_post(port, body.dump());
  EXPECT_EQ(response.status, 200);
  EXPECT_TRUE(contains(response.head, "text/event-stream"));
  std::vector<std::string> texts(2), reasons(2);
  std::vector<json> logprobs(2, json::array());
  json usage;
  bool done = false;
  for (std::size_t at = 0; at < response.body.size();) {
    const std::size_t end = response.body.find("\n\n", at);
    ASSERT_NE(end, std::string::npos);
    if (response.body[at] == ':') {  // a comment, for a slow machine
      at = end + 2;
      continue;
    }
    ASSERT_EQ(response.body.substr(at, 6), "data: ");
    const std::string data = response.body.substr(at + 6, end - at - 6);
    at = end + 2;
    EXPECT_FALSE(done);
    done = data == "[DONE]";
    if (done) continue;
    const json event = json::parse(data);
    if (event.contains("usage")) usage = event.at("usage");
    for (const json& choice : event.at("choices")) {
      const auto index = choice.at("index").get<std::size_t>();
      EXPECT_EQ(reasons.at(index), "") << "nothing follows the last part";
      texts[index] += choice.at("text");
      for (const json& value : choice.at("logprobs").at("token_logprobs")) logprobs[index].push_back(value);
      if (!choice.at("finish_reason").is_null()) reasons[index] = choice.at("finish_reason");
    }
  }
  EXPECT_TRUE(done);
  EXPECT_EQ(usage, whole.at("usage"));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(json(texts[i]), whole.at("choices").at(i).at("text"));
    EXPECT_EQ(json(reasons[i]), whole.at("choices").at(i).at("finish_reason"));
    EXPECT_EQ(logprobs[i], whole.at("choices").at(i).at("logprobs").at("token_logprobs"));
  }
}

TEST_F(ServerTest, AStopStringEndsTextAndLogprobsTogether) {
  start();
  json body = {{"prompt", "hello"}, {"max_tokens", 60}, {"seed", 3}, {"logprobs", 0}};
  const json whole = complete(body).at("choices").at(0);
  // A pair of whole characters somewhere inside.
  std::size_t at = 0;
  const std::string text = whole.at("text");
  for (std::size_t i = 5; i + 1 < text.size() && at == 0; ++i) {
    if (std::isalnum(static_cast<unsigned char>(text[i])) &&
        std::isprint(static_cast<unsigned char>(text[i + 1])))
      at = i;
  }
  ASSERT_GT(at, 0u);
  body["stop"] = text.substr(at, 2);
  const json stopped = complete(body).at("choices").at(0);
  const std::string cut = text.substr(0, text.find(text.substr(at, 2)));
  EXPECT_EQ(stopped.at("text"), cut);
  EXPECT_EQ(stopped.at("finish_reason"), "stop");
  const auto count = stopped.at("logprobs").at("tokens").size();
  EXPECT_LT(count, 60u);
  for (std::size_t i = 0; i < count; ++i)
    EXPECT_EQ(stopped.at("logprobs").at("token_logprobs").at(i),
              whole.at("logprobs").at("token_logprobs").at(i));
}

TEST_F(ServerTest, BadRequestsGetAReason) {
  ServerOptions options;
  options.max_body = 2000;
  start(options);
  const auto expect = [&](const HttpResponse& response, int status, const std::string& part) {
    EXPECT_EQ(response.status, status) << response.body;
    const json body = json::parse(response.body, nullptr, false);
    ASSERT_TRUE(body.is_object()) << response.body;
    EXPECT_TRUE(contains(body.at("error").at("message").get<std::string>(), part)) << response.body;
  };
  expect(http_post(port, "{"), 400, "not JSON");
  expect(http_post(port, R"({"prompt": "a", "max_tokens": "many"})"), 400, "max_tokens");
  expect(http_post(port, R"({"prompt": "a", "model": "gpt-4"})"), 404, "micro");
  expect(http_post(port, "{}", "/v1/other"), 404, "/v1/other");
  expect(http_get(port, "/v1/completions"), 405, "method");
  expect(http_post(port, json{{"prompt", std::string(3000, 'a')}}.dump()), 413, "body");
  const std::string chunk = "800\r\n" + std::string(0x800, ' ') + "\r\n";
  const std::string chunked =
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk +
      chunk + "0\r\n\r\n";
  expect(http_exchange(port, chunked), 413, "body");
  EXPECT_EQ(complete({{"prompt", "still"}, {"max_tokens", 2}, {"temperature", 0}}).at("choices").size(), 1u);
}

TEST_F(ServerTest, ADisconnectedClientFreesItsPlaces) {
  ServerOptions options;
  options.max_batch = 2;
  start(options);
  for (const bool stream : {true, false}) {
    json body = endless();
    body["stream"] = stream;
    Connection client(port);
    client.send(post_text("/v1/completions", body.dump()));
    wait_for_running(2);
    client.disconnect();
    wait_for_running(0);
  }
  EXPECT_EQ(complete({{"prompt", "next"}, {"max_tokens", 2}}).at("choices").size(), 1u);
}

TEST_F(ServerTest, TooManyRequestsGet503) {
  ServerOptions options;
  options.max_batch = 1;
  options.queue = 1;
  start(options);
  Connection client(port);  // has the place, and waits with its other texts
  client.send(post_text("/v1/completions", endless().dump()));
  wait_for_running(1);
  const HttpResponse refused = http_post(port, R"({"prompt": "a"})");
  EXPECT_EQ(refused.status, 503);
  EXPECT_TRUE(contains(refused.head, "Retry-After")) << refused.head;
  EXPECT_TRUE(contains(refused.body, "waiting already")) << refused.body;
  client.disconnect();
  wait_for_running(0);
  EXPECT_EQ(complete({{"prompt", "next"}, {"max_tokens", 2}}).at("choices").size(), 1u);
}

TEST_F(ServerTest, ARequestEndsWithItsTime) {
  ServerOptions options;
  options.timeout = std::chrono::seconds(1);
  options.max_batch = 1;
  start(options);
  json body = endless();
  body["stream"] = false;
  const json answer = complete(body);
  ASSERT_EQ(answer.at("choices").size(), 128u);
  EXPECT_EQ(answer.at("choices").at(127).at("finish_reason"), "timeout");
  EXPECT_GT(answer.at("usage").at("completion_tokens"), 0);
  wait_for_running(0);
}

TEST_F(ServerTest, ADrainingServerFinishesWhatItBegan) {
  start();
  json body = endless();
  body["max_tokens"] = 1000;
  body["n"] = 1;
  Connection connection(port);
  connection.send(post_text("/v1/completions", body.dump()));
  std::string all = connection.receive();
  server->drain();
  EXPECT_EQ(http_post(port, endless().dump()).status, 503);
  EXPECT_EQ(http_get(port, "/health").status, 503);
  for (std::string part = connection.receive(); !part.empty(); part = connection.receive()) all += part;
  EXPECT_TRUE(contains(all, "[DONE]"));
  for (int i = 0; i < 6000 && !server->idle(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(server->idle());
}

TEST_F(ServerTest, StoppingEndsEverything) {
  ServerOptions options;
  options.max_batch = 1;
  options.queue = 2;
  start(options);
  Connection running_one(port), waiting_one(port);
  running_one.send(post_text("/v1/completions", endless().dump()));
  wait_for_running(1);
  waiting_one.send(post_text("/v1/completions", endless().dump()));
  server->stop();
  server.reset();
}

/// Bodies that are almost right: a valid one with bytes changed, removed and doubled, and whole values replaced.
TEST_F(ServerTest, AnyBodyGetsAnAnswer) {
  start();
  const std::string valid =
      R"({"prompt": ["ab", [1, 2]], "n": 2, "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "logprobs": 1, "echo": true})";
  const std::vector<std::string> values = {"null",        "-1",         "1e308",
                                           "\"\\u0000\"", "[]",         "{}",
                                           "[[[]]]",      "true",       "9223372036854775808",
                                           "\"\\ud800\"", "[1, \"a\"]", "0.0"};
  const Random random(11, 0);
  std::uint64_t at = 0;
  const auto below = [&](std::size_t bound) { return random.below(at++, bound); };
  int accepted = 0, refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string body = valid;
    for (std::uint64_t edits = 1 + below(2); edits > 0; --edits) {
      const std::size_t place = below(body.size()), length = 1 + below(4);
      switch (below(8)) {
        case 0:
          body[place] = static_cast<char>(below(256));
          break;
        case 1:
          body.erase(place, length);
          break;
        case 2:
          body.insert(place, body.substr(place, length));
          break;
        default: {
          const std::size_t colon = body.find(": ", place), end = body.find(", \"", colon);
          if (end != std::string::npos)
            body.replace(colon + 2, end - colon - 2, values[below(values.size())]);
        }
      }
      if (body.empty()) body = "{";
    }
    const HttpResponse response = http_post(port, body);
    EXPECT_TRUE(response.status == 200 || response.status == 400 || response.status == 404)
        << response.status << " " << body;
    EXPECT_TRUE(json::accept(response.body)) << response.body;
    ++(response.status == 200 ? accepted : refused);
  }
  EXPECT_GT(accepted, 10);
  EXPECT_GT(refused, 100);
}

/// Connections that wait to be accepted at `port`, as the system allows this process's listening socket; 0: none listens.
std::uint32_t backlog(int port) {
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    sockaddr_in address{};
    socklen_t size = sizeof address;
    if (::getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
        address.sin_family != AF_INET || ntohs(address.sin_port) != port)
      continue;
    tcp_info info{};
    size = sizeof info;
    // Of a listening socket `tcpi_sacked` is the backlog.
    if (::getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_state == TCP_LISTEN)
      return info.tcpi_sacked;
  }
  return 0;
}

TEST_F(ServerTest, ManyClientsMayComeAtOnce) {
  start();
  EXPECT_GE(backlog(port), 128u) << "more than the HTTP library's 5";
}

TEST_F(ServerTest, AnAddressThatIsTakenIsReported) {
  start();
  ServerOptions options;
  options.port = port;
  CompletionServer second(model, context, recipe, tokenizer, options);
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { second.start(); }), "cannot listen"));
  options.host = "203.0.113.1";  // not of this machine
  CompletionServer other(model, context, recipe, tokenizer, options);
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { other.start(); }), "cannot listen"));
  options.max_batch = 0;
  error_message(ErrorKind::usage, [&] { CompletionServer(model, context, recipe, tokenizer, options); });
}

}  // namespace
}  // namespace quaver
