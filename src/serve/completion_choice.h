/// One choice of a completion: what the generator brings, as text and log probabilities in the OpenAI form.
#pragma once

#include <cstdint>
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "generate/text_stream.h"
#include "serve/completion_request.h"

namespace quaver {

/// Text with the tokens that begin in it.
struct CompletionPart {
  struct Token {
    std::string text;         ///< "bytes:\xE2\x82" if its bytes are no whole characters
    std::int64_t offset = 0;  ///< characters of the choice's text before it
    bool scored = false;      ///< false: the first token of a text has no probability
    double logprob = 0;
    std::vector<std::pair<std::string, double>> top;  ///< the likeliest, and the token itself
  };
  std::string text;
  std::vector<Token> tokens;  ///< when log probabilities were asked for
  std::string finish_reason;  ///< with the last part: "stop", "length", "timeout" or "error"

  bool empty() const { return text.empty() && tokens.empty() && finish_reason.empty(); }
  CompletionPart& operator+=(CompletionPart more);
};

/// The tokenizer must outlive it.
class CompletionChoice {
 public:
  CompletionChoice(const Tokenizer& tokenizer, const CompletionRequest& request,
                   const CompletionPrompt& prompt);

  /// What can be sent after this event; empty once finished.
  CompletionPart take(const GenerationEvent& event);
  /// The last part of a choice that gets no more events.
  CompletionPart end(std::string_view reason);
  bool finished() const { return finished_; }
  std::int64_t completion_tokens() const { return drawn_; }

 private:
  struct Pending {
    std::size_t begin = 0, size = 0;  // bytes of the text, without the prompt's
    CompletionPart::Token token;
  };

  CompletionPart::Token token_of(std::int32_t token, const PositionScores* scores);
  void echo(CompletionPart& part, const std::vector<PositionScores>& scores);
  void release(CompletionPart& part, std::string text);
  CompletionPart finish(CompletionPart part, std::string_view reason);

  const Tokenizer& tokenizer_;
  std::vector<std::int32_t> echoed_;  // tokens of the prompt that are still to be sent
  bool logprobs_ = false, first_ = false, finished_ = false;
  TextStream stream_;
  std::deque<Pending> pending_;  // tokens whose text is held back
  std::size_t drawn_bytes_ = 0, released_ = 0;
  std::int64_t drawn_ = 0, characters_ = 0;
};

/// `logprobs` of a choice: tokens, token_logprobs, top_logprobs, text_offset.
nlohmann::ordered_json logprobs_json(const std::vector<CompletionPart::Token>& tokens);

}  // namespace quaver
