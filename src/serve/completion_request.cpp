#include "serve/completion_request.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "base/check.h"
#include "base/suggest.h"
#include "generate/generator.h"
#include "text/utf8.h"

namespace quaver {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxStops = 16, kMaxStopBytes = 1024;
constexpr std::int64_t kMaxLogprobs = 20;

/// All that are known; some must have a value under which they change nothing (`refuse_unsupported`).
const std::set<std::string>& members() {
  static const std::set<std::string> names = {"model",
                                              "prompt",
                                              "n",
                                              "max_tokens",
                                              "temperature",
                                              "top_p",
                                              "top_k",
                                              "seed",
                                              "stop",
                                              "logprobs",
                                              "echo",
                                              "stream",
                                              "stream_options",
                                              "user",
                                              "best_of",
                                              "suffix",
                                              "logit_bias",
                                              "presence_penalty",
                                              "frequency_penalty",
                                              "repetition_penalty"};
  return names;
}

/// A value as it is shown in a message: short. An array may be nested deeper than a recursive writer can follow.
std::string shown(const json& value) {
  if (value.is_structured()) return fmt::format("an {}", value.type_name());
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, valid_utf8_prefix(text.substr(0, 37))) + "...";
  return text;
}

class Members {
 public:
  explicit Members(const json& object) : object_(object) {}

  /// Null when absent; `null` counts as absent.
  const json* find(const char* name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void boolean(const char* name, bool& value) const {
    const json* found = find(name);
    if (!found) return;
    require(found->is_boolean(), "{}: expected true or false, found {}", name, shown(*found));
    value = found->get<bool>();
  }
  std::optional<std::int64_t> integer(const char* name, std::int64_t low, std::int64_t high) const {
    const json* found = find(name);
    if (!found) return std::nullopt;
    const bool fits = found->is_number_unsigned() ? found->get<std::uint64_t>() <= std::uint64_t{INT64_MAX}
                                                  : found->is_number_integer();
    const std::int64_t value = fits ? found->get<std::int64_t>() : 0;
    require(fits && value >= low && value <= high, "{}: expected an integer in [{}, {}], found {}", name, low,
            high, shown(*found));
    return value;
  }
  void number(const char* name, float& value) const {
    const json* found = find(name);
    if (!found) return;
    require(found->is_number(), "{}: expected a number, found {}", name, shown(*found));
    value = found->get<float>();
  }
  void refuse_unless_zero(const char* name) const {
    float value = 0;
    number(name, value);
    require(value == 0, "{}: only 0 is supported", name);
  }

 private:
  const json& object_;
};

std::vector<std::int32_t> token_ids(const json& array, const Tokenizer& tokenizer) {
  require(!array.empty(), "prompt: expected at least one token id");
  std::vector<std::int32_t> tokens;
  for (const json& id : array) {
    const bool fits =
        id.is_number_integer() && (!id.is_number_unsigned() || id.get<std::uint64_t>() <= INT32_MAX);
    const std::int64_t value = fits ? id.get<std::int64_t>() : -1;
    require(value >= 0 && value < tokenizer.vocab(), "prompt: expected token ids in [0, {}), found {}",
            tokenizer.vocab(), shown(id));
    tokens.push_back(static_cast<std::int32_t>(value));
  }
  return tokens;
}

CompletionPrompt prompt_of(const json& value, const Tokenizer& tokenizer) {
  if (value.is_string()) return {prompt_tokens(tokenizer, value.get_ref<const std::string&>()), 1};
  require(value.is_array(), "prompt: expected a string, token ids, or an array of these, found {}",
          shown(value));
  return {token_ids(value, tokenizer), 0};
}

std::vector<CompletionPrompt> prompts_of(const Members& body, const Tokenizer& tokenizer,
                                         const CompletionLimits& limits) {
  const json* prompt = body.find("prompt");
  require(prompt, "prompt: it is missing");
  const bool several = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();
  if (!several) return {prompt_of(*prompt, tokenizer)};
  require(static_cast<std::int64_t>(prompt->size()) <= limits.max_choices,
          "prompt: {} prompts; at most {} are taken", prompt->size(), limits.max_choices);
  std::vector<CompletionPrompt> prompts;
  for (const json& one : *prompt) prompts.push_back(prompt_of(one, tokenizer));
  return prompts;
}

std::vector<std::string> stops_of(const Members& body) {
  const json* stop = body.find("stop");
  if (!stop) return {};
  const json list = stop->is_array() ? *stop : json::array({*stop});
  require(list.size() <= kMaxStops, "stop: {} strings; at most {} are taken", list.size(), kMaxStops);
  std::vector<std::string> stops;
  for (const json& one : list) {
    require(one.is_string() && one.get_ref<const std::string&>().size() <= kMaxStopBytes,
            "stop: expected a string of 1 to {} bytes, or an array of these, found {}", kMaxStopBytes,
            shown(one));
    // Some clients send one empty string for none.
    if (!one.get_ref<const std::string&>().empty()) stops.push_back(one);
  }
  return stops;
}

void check_members(const json& body) {
  const std::vector<std::string> known(members().begin(), members().end());
  for (const auto& [name, value] : body.items()) {
    if (members().contains(name)) continue;
    const std::string nearest = nearest_name(name, known);
    fail(ErrorKind::usage, "{}: unknown member{}", shown(name),
         nearest.empty() ? "" : fmt::format("; did you mean \"{}\"?", nearest));
  }
}

/// What would change the completions but is not there.
void refuse_unsupported(const Members& body, std::int64_t choices) {
  body.refuse_unless_zero("presence_penalty");
  body.refuse_unless_zero("frequency_penalty");
  const auto best_of = body.integer("best_of", 1, INT32_MAX);
  require(!best_of || *best_of == choices, "best_of: only the value of n is supported");
  const json *suffix = body.find("suffix"), *bias = body.find("logit_bias");
  require(!suffix || *suffix == "", "suffix: it is not supported");
  require(!bias || bias->empty(), "logit_bias: it is not supported");
}

void read_stream(const Members& body, CompletionRequest& request) {
  body.boolean("stream", request.stream);
  const json* options = body.find("stream_options");
  if (!options) return;
  require(options->is_object(), "stream_options: expected an object, found {}", shown(*options));
  Members(*options).boolean("include_usage", request.stream_usage);
}

std::uint64_t random_seed() {
  std::random_device device;
  // Below 2^53, so that every JSON reader gives it back exactly.
  return (std::uint64_t{device()} << 21) ^ device();
}

void check_lengths(const CompletionRequest& request, const CompletionLimits& limits) {
  const auto prompts = static_cast<std::int64_t>(request.prompts.size());
  require(prompts * request.choices <= limits.max_choices,
          "n: {} prompts with {} choices; at most {} are taken", prompts, request.choices,
          limits.max_choices);
  for (const CompletionPrompt& prompt : request.prompts) {
    const auto length = static_cast<std::int64_t>(prompt.tokens.size());
    require(length + request.max_tokens <= limits.context,
            "prompt: {} tokens and max_tokens = {} exceed the model's context of {}", length,
            request.max_tokens, limits.context);
  }
}

}  // namespace

CompletionRequest parse_completion_request(std::string_view body, const Tokenizer& tokenizer,
                                           const CompletionLimits& limits) {
  const json object = json::parse(body, nullptr, false);
  require(!object.is_discarded(), "body: it is not JSON");
  require(object.is_object(), "body: expected a JSON object, found {}", shown(object));
  check_members(object);
  const Members members_of(object);
  CompletionRequest request;
  if (const json* model = members_of.find("model")) {
    require(model->is_string(), "model: expected a string, found {}", shown(*model));
    request.model = *model;
  }
  request.prompts = prompts_of(members_of, tokenizer, limits);
  request.choices = members_of.integer("n", 1, limits.max_choices).value_or(1);
  request.max_tokens = members_of.integer("max_tokens", 0, limits.max_tokens)
                           .value_or(std::min(request.max_tokens, limits.max_tokens));
  members_of.number("temperature", request.sampling.temperature);
  members_of.number("top_p", request.sampling.top_p);
  members_of.number("repetition_penalty", request.sampling.repetition_penalty);
  request.sampling.top_k = members_of.integer("top_k", -1, INT32_MAX).value_or(0);
  if (request.sampling.top_k < 0) request.sampling.top_k = 0;  // how some clients say "all"
  validate(request.sampling, "");
  const auto seed = members_of.integer("seed", INT64_MIN, INT64_MAX);
  request.seed = seed ? static_cast<std::uint64_t>(*seed) : random_seed();
  request.stop = stops_of(members_of);
  request.logprobs = members_of.integer("logprobs", 0, kMaxLogprobs);
  members_of.boolean("echo", request.echo);
  read_stream(members_of, request);
  refuse_unsupported(members_of, request.choices);
  check_lengths(request, limits);
  return request;
}

std::vector<GenerationRequest> CompletionRequest::texts(const Tokenizer& tokenizer) const {
  std::vector<GenerationRequest> all;
  for (const CompletionPrompt& prompt : prompts) {
    for (std::int64_t choice = 0; choice < choices; ++choice) {
      GenerationRequest text;
      text.prompt = prompt.tokens;
      text.max_tokens = max_tokens;
      text.sampling = sampling;
      text.seed = seed;
      text.stream = static_cast<std::uint64_t>(choice);
      text.end_token = tokenizer.document_token();
      text.score_prompt = echo && logprobs.has_value();
      text.top_scores = logprobs;
      all.push_back(std::move(text));
    }
  }
  return all;
}

}  // namespace quaver
