/// Many texts that one model continues at once: continuous batching.
#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "base/random.h"
#include "generate/ranking.h"
#include "generate/sampling.h"
#include "quaver/language_model.h"

namespace quaver {

struct GenerationRequest {
  std::vector<std::int32_t> prompt;  ///< at least one token, all below the model's vocabulary
  std::int64_t max_tokens = 0;
  SamplingOptions sampling;
  std::uint64_t seed = 1, stream = 0;  ///< of the random numbers: their i-th draws the i-th token
  std::int32_t end_token = -1;         ///< drawn, it ends the text and is not part of it; -1: none
  bool score_prompt = false;           ///< scores for the prompt's tokens from the second on
  std::optional<std::int64_t>
      top_scores;  ///< with scores of the tokens, and of so many likeliest ones beside each
};

enum class Finish { none, length, end_token, failed };

/// What one step brought to one text.
struct GenerationEvent {
  std::uint64_t id = 0;
  std::vector<PositionScores> prompt_scores;  ///< of the next tokens of the prompt
  std::optional<std::int32_t> token;          ///< the next token of the text
  std::optional<PositionScores> token_score;  ///< of that token, before temperature and penalty
  Finish finish = Finish::none;               ///< not none: the last event of this text
  std::exception_ptr failure;                 ///< with Finish::failed
};

/// Every step is one forward pass over the next tokens of many texts, which may join and leave between steps. What a text
/// becomes is a function of the model's bits and its own request: its prompt is cut by its own length, and its random
/// numbers are its own. Rows of a product do not depend on their number on the `cpu` and `reference` backends, so the bits
/// are those of the text alone; on `cuda` the product's kernel depends on that number, and so may the last bit.
///
/// A text that outgrows model.context goes on in a window that begins with its last half.
class BatchGenerator {
 public:
  struct Options {
    std::int64_t max_texts = 1;
    /// Tokens of one forward pass, unless one text alone brings more. 0: no bound.
    std::int64_t max_rows = 1024;
    /// Tokens that may be drawn are below it; 0: all of the model's.
    std::int64_t vocab = 0;
  };

  /// The model and the context must outlive it.
  BatchGenerator(LanguageModel& model, Context& context, std::optional<Recipe> recipe,
                 const Options& options);

  std::int64_t texts() const { return static_cast<std::int64_t>(texts_.size()); }
  bool full() const { return texts() >= options_.max_texts; }
  /// Throws Error(usage) for a request out of range, and when full.
  std::uint64_t join(GenerationRequest request);
  /// Frees the place of a text that is not finished; nothing for one that is.
  void leave(std::uint64_t id);
  /// Empty when there are no texts.
  std::vector<GenerationEvent> step();

 private:
  struct Text {
    std::uint64_t id;
    GenerationRequest request;
    std::vector<std::int32_t> tokens;
    KvCache cache;
    std::int64_t begin = 0;  // of the window, in tokens
    std::int64_t drawn = 0;
    std::int64_t next_rows = 0;                                  // tokens of the next forward pass
    std::int64_t known() const { return begin + cache.length; }  // tokens behind the cache
  };

  void prepare(Text& text) const;
  std::vector<Text*> choose();
  void read_logits(Text& text, std::span<const float> logits, GenerationEvent& event) const;
  void draw(Text& text, std::span<const float> logits, GenerationEvent& event) const;
  std::int64_t wanted_logits(const Text& text) const;

  LanguageModel& model_;
  Context& context_;
  std::optional<Recipe> recipe_;
  Options options_;
  std::vector<Text> texts_;  // in the order in which they joined
  std::vector<KvCache> free_;
  std::uint64_t next_id_ = 1;
};

}  // namespace quaver
