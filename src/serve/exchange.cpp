#include "serve/exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <utility>

namespace quaver {
namespace {

using nlohmann::ordered_json;

/// Texts may hold bytes that are not UTF-8.
std::string dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

std::string message_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

Exchange::Exchange(CompletionRequest request, std::shared_ptr<Completion> completion,
                   std::shared_ptr<const Tokenizer> tokenizer, std::string model, std::uint64_t id)
    : request_(std::move(request)),
      completion_(std::move(completion)),
      tokenizer_(std::move(tokenizer)),
      model_(std::move(model)),
      id_(id),
      created_(static_cast<std::int64_t>(std::time(nullptr))) {
  for (const CompletionPrompt& prompt : request_.prompts) {
    for (std::int64_t i = 0; i < request_.choices; ++i) choices_.emplace_back(*tokenizer_, request_, prompt);
  }
  parts_.resize(choices_.size());
}

Exchange::~Exchange() {
  completion_->cancel();
}

bool Exchange::finished() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const auto& choice) { return choice.finished(); });
}

void Exchange::advance(std::chrono::steady_clock::time_point until,
                       std::chrono::steady_clock::time_point deadline) {
  for (const Completion::Delivery& delivery : completion_->wait_until(std::min(until, deadline))) {
    begun_ = true;
    if (delivery.event.failure && failure_.empty()) failure_ = message_of(delivery.event.failure);
    CompletionChoice& choice = choices_[delivery.text];
    parts_[delivery.text] += choice.take(delivery.event);
    if (choice.finished()) completion_->end(delivery.text);
  }
  if (std::chrono::steady_clock::now() < deadline) return;
  for (std::size_t i = 0; i < choices_.size(); ++i) parts_[i] += choices_[i].end("timeout");
  completion_->cancel();
}

ordered_json Exchange::object(ordered_json choices) const {
  return {{"id", fmt::format("cmpl-{}", id_)},
          {"object", "text_completion"},
          {"created", created_},
          {"model", model_},
          {"seed", request_.seed},
          {"choices", std::move(choices)}};
}

ordered_json Exchange::choice_json(std::size_t choice, const CompletionPart& part) const {
  return {{"index", choice},
          {"text", part.text},
          {"logprobs", request_.logprobs ? logprobs_json(part.tokens) : ordered_json()},
          {"finish_reason", part.finish_reason.empty() ? ordered_json() : ordered_json(part.finish_reason)}};
}

ordered_json Exchange::usage() const {
  std::int64_t prompt = 0, completion = 0;
  for (const CompletionPrompt& one : request_.prompts) prompt += static_cast<std::int64_t>(one.tokens.size());
  for (const CompletionChoice& choice : choices_) completion += choice.completion_tokens();
  return {
      {"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
}

std::string Exchange::take_events() {
  std::string events;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const CompletionPart part = std::exchange(parts_[i], {});
    if (part.empty()) continue;
    events += "data: " + dump(object(ordered_json::array({choice_json(i, part)}))) + "\n\n";
  }
  if (!finished() || std::exchange(done_sent_, true)) return events;
  if (request_.stream_usage) {
    ordered_json last = object(ordered_json::array());
    last["usage"] = usage();
    events += "data: " + dump(last) + "\n\n";
  }
  return events + "data: [DONE]\n\n";
}

std::string Exchange::response() const {
  ordered_json choices = ordered_json::array();
  for (std::size_t i = 0; i < parts_.size(); ++i) choices.push_back(choice_json(i, parts_[i]));
  ordered_json whole = object(std::move(choices));
  whole["usage"] = usage();
  return dump(whole);
}

std::string error_json(const std::string& message, const std::string& type) {
  return dump({{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", nullptr}}}});
}

}  // namespace quaver
