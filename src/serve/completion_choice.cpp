#include "serve/completion_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace quaver {
namespace {

std::string token_text(const Tokenizer& tokenizer, std::int32_t token) {
  const std::string_view bytes = token < tokenizer.vocab() ? tokenizer.bytes_of(token) : std::string_view();
  if (valid_utf8_prefix(bytes) == bytes.size()) return std::string(bytes);
  std::string text = "bytes:";
  for (const char byte : bytes) text += fmt::format("\\x{:02X}", static_cast<unsigned char>(byte));
  return text;
}

/// Characters that begin in `bytes`.
std::int64_t characters_in(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(), [](char byte) { return (byte & 0xC0) != 0x80; });
}

}  // namespace

CompletionPart& CompletionPart::operator+=(CompletionPart more) {
  text += more.text;
  std::move(more.tokens.begin(), more.tokens.end(), std::back_inserter(tokens));
  if (!more.finish_reason.empty()) finish_reason = std::move(more.finish_reason);
  return *this;
}

CompletionChoice::CompletionChoice(const Tokenizer& tokenizer, const CompletionRequest& request,
                                   const CompletionPrompt& prompt)
    : tokenizer_(tokenizer), logprobs_(request.logprobs.has_value()), stream_(request.stop) {
  if (!request.echo) return;
  echoed_.assign(prompt.tokens.begin() + static_cast<std::ptrdiff_t>(prompt.echo_begin), prompt.tokens.end());
  first_ = prompt.echo_begin == 0;
}

CompletionPart::Token CompletionChoice::token_of(std::int32_t token, const PositionScores* scores) {
  CompletionPart::Token result{token_text(tokenizer_, token), characters_, scores != nullptr, 0, {}};
  characters_ += characters_in(token < tokenizer_.vocab() ? tokenizer_.bytes_of(token) : "");
  if (!scores) return result;
  result.logprob = scores->token.logprob;
  for (const TokenScore& likely : scores->top)
    result.top.emplace_back(token_text(tokenizer_, likely.token), likely.logprob);
  result.top.emplace_back(result.text, result.logprob);
  return result;
}

/// The tokens of the prompt that `scores` belong to; without log probabilities the whole prompt at once.
void CompletionChoice::echo(CompletionPart& part, const std::vector<PositionScores>& scores) {
  if (echoed_.empty()) return;
  const std::size_t count =
      logprobs_ ? std::min(echoed_.size(), scores.size() + (first_ ? 1 : 0)) : echoed_.size();
  for (std::size_t i = 0; i < count; ++i) {
    part.text += tokenizer_.bytes_of(echoed_[i]);
    if (!logprobs_) continue;
    const bool scored = !first_ || i > 0;
    part.tokens.push_back(token_of(echoed_[i], scored ? &scores[i - (first_ ? 1 : 0)] : nullptr));
  }
  if (count > 0) first_ = false;
  echoed_.erase(echoed_.begin(), echoed_.begin() + static_cast<std::ptrdiff_t>(count));
}

/// Tokens go out with the first byte of their text.
void CompletionChoice::release(CompletionPart& part, std::string text) {
  released_ += text.size();
  part.text += text;
  while (!pending_.empty() && (pending_.front().begin < released_ ||
                               (pending_.front().size == 0 && pending_.front().begin == released_))) {
    part.tokens.push_back(std::move(pending_.front().token));
    pending_.pop_front();
  }
}

CompletionPart CompletionChoice::finish(CompletionPart part, std::string_view reason) {
  release(part, stream_.finish());
  if (!stream_.stopped()) {
    for (Pending& token : pending_) part.tokens.push_back(std::move(token.token));
  }
  pending_.clear();
  part.finish_reason = reason;
  finished_ = true;
  return part;
}

CompletionPart CompletionChoice::take(const GenerationEvent& event) {
  CompletionPart part;
  if (finished_) return part;
  echo(part, event.prompt_scores);
  if (event.token) {
    const std::string_view bytes = tokenizer_.bytes_of(*event.token);
    ++drawn_;
    if (logprobs_)
      pending_.push_back({drawn_bytes_, bytes.size(), token_of(*event.token, &*event.token_score)});
    drawn_bytes_ += bytes.size();
    release(part, stream_.append(bytes));
  }
  if (stream_.stopped() || event.finish == Finish::end_token) return finish(std::move(part), "stop");
  if (event.finish == Finish::length) return finish(std::move(part), "length");
  if (event.finish == Finish::failed) return finish(std::move(part), "error");
  return part;
}

CompletionPart CompletionChoice::end(std::string_view reason) {
  return finished_ ? CompletionPart() : finish({}, reason);
}

nlohmann::ordered_json logprobs_json(const std::vector<CompletionPart::Token>& tokens) {
  using nlohmann::ordered_json;
  ordered_json json = {{"tokens", ordered_json::array()},
                       {"token_logprobs", ordered_json::array()},
                       {"top_logprobs", ordered_json::array()},
                       {"text_offset", ordered_json::array()}};
  for (const CompletionPart::Token& token : tokens) {
    json["tokens"].push_back(token.text);
    json["text_offset"].push_back(token.offset);
    json["token_logprobs"].push_back(token.scored ? ordered_json(token.logprob) : ordered_json());
    ordered_json top;  // null for a token without a probability
    // Tokens with the same text: the likelier one came first.
    for (const auto& [text, logprob] : token.top) {
      if (!top.contains(text)) top[text] = logprob;
    }
    json["top_logprobs"].push_back(std::move(top));
  }
  return json;
}

}  // namespace quaver
