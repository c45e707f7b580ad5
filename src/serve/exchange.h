/// The answer to one request while its texts grow: the JSON that is sent. Knows nothing of HTTP.
#pragma once

#include <chrono>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "serve/completion_choice.h"
#include "serve/scheduler.h"

namespace quaver {

class Exchange {
 public:
  /// `id`: the completion's number.
  Exchange(CompletionRequest request, std::shared_ptr<Completion> completion,
           std::shared_ptr<const Tokenizer> tokenizer, std::string model, std::uint64_t id);
  ~Exchange();  ///< frees the places of its texts

  /// Waits for events until `until` at most; nothing more is waited for after the end of the last choice. At `deadline` all
  /// choices end.
  void advance(std::chrono::steady_clock::time_point until, std::chrono::steady_clock::time_point deadline);
  bool begun() const { return begun_; }  ///< a text had a place and a step
  bool finished() const;
  /// Why a choice failed; empty: none has.
  const std::string& failure() const { return failure_; }

  /// Server-sent events of what came since the last call; with the last ones, [DONE].
  std::string take_events();
  /// The whole answer, once finished.
  std::string response() const;

 private:
  nlohmann::ordered_json object(nlohmann::ordered_json choices) const;
  nlohmann::ordered_json choice_json(std::size_t choice, const CompletionPart& part) const;
  nlohmann::ordered_json usage() const;

  CompletionRequest request_;
  std::shared_ptr<Completion> completion_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string model_;
  std::uint64_t id_;
  std::int64_t created_;
  std::vector<CompletionChoice> choices_;
  std::vector<CompletionPart> parts_;  // streaming: since the last call; else all
  bool begun_ = false, done_sent_ = false;
  std::string failure_;
};

/// {"error": ...} in the OpenAI form.
std::string error_json(const std::string& message, const std::string& type);

}  // namespace quaver
