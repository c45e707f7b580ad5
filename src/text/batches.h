/// Tokens cut into windows, and windows into batches.
///
/// Each document is preceded by the document token; the documents are joined without padding and cut into
/// windows of `context` tokens. The target of a token is the token after it, so that the target of a
/// document's last token is the document token.
#pragma once

#include <cstdint>
#include <vector>

#include "text/token_data.h"

namespace quaver {

/// `batch` sequences of `length` tokens; all vectors have batch * length entries, sequence after sequence.
struct HostBatch {
  std::int64_t batch = 0, length = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;    ///< the next tokens; -1 after the end of the validation text
  std::vector<std::int32_t> positions;  ///< 0 .. length - 1 within the window
  std::vector<std::int32_t>
      first_key;  ///< first position of the token's document in the window; all 0 without a document mask
  std::int64_t target_count = 0;  ///< targets that are not -1
  std::int64_t target_bytes =
      0;  ///< of text in the targets, 0 if not known: bits per byte = nats / ln 2 / these
};

/// The endless stream of training batches: a pure function of (tokens, context, batch, seed, index). An
/// epoch is every window once, in an order drawn from (seed, epoch); the last window continues at the start
/// of the text. Not thread-safe.
class BatchSource {
 public:
  /// The segments of `tokens` are put into an order drawn from the seed.
  BatchSource(const TokenStream& tokens, TokenRules rules, std::int64_t context, std::int64_t batch,
              std::uint64_t seed);

  /// The batch of micro-step `index` >= 0, counted from the start of the run.
  HostBatch at(std::int64_t index) const;

  std::int64_t windows() const { return windows_; }  ///< per epoch
  std::int64_t tokens() const { return stream_.size(); }

 private:
  std::int64_t window_at(std::int64_t epoch, std::int64_t rank) const;

  TokenStream stream_;
  TokenRules rules_;
  std::int64_t context_, batch_, windows_;
  std::uint64_t seed_;
  // The order of the epoch last asked for: saves time, changes no result.
  mutable std::int64_t cached_epoch_ = -1;
  mutable std::vector<std::int64_t> cached_order_;
};

/// The validation text in order, every target once. The last window is filled up with targets of -1, and the
/// last batch may hold fewer sequences.
class ValidationBatches {
 public:
  ValidationBatches(TokenStream tokens, TokenRules rules, std::int64_t context, std::int64_t batch);

  std::int64_t count() const;
  HostBatch at(std::int64_t index) const;  ///< 0 <= index < count()
  /// The indices of `max_batches` batches spread evenly over the text (0, or more than there are: of all).
  std::vector<std::int64_t> spread(std::int64_t max_batches) const;

  std::int64_t windows() const { return windows_; }
  std::int64_t tokens() const { return stream_.size(); }

 private:
  TokenStream stream_;
  TokenRules rules_;
  std::int64_t context_, batch_, windows_;
};

}  // namespace quaver
