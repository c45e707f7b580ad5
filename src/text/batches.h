/// Documents packed into windows of byte tokens, and windows into batches.
///
/// Each document is preceded by kDocumentToken; the documents are joined without padding and cut into windows
/// of `context` tokens. The target of a token is the token after it, so that the target of a document's last
/// byte is kDocumentToken.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "text/corpus.h"

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
  std::int64_t target_bytes = 0;  ///< targets below 256: bits per byte = total nats / ln 2 / target_bytes
};

/// The endless stream of training batches: a pure function of (documents, context, batch, seed, index). An
/// epoch is every window once, in an order drawn from (seed, epoch); the last window continues at the start
/// of the text. Not thread-safe.
class BatchSource {
 public:
  BatchSource(std::span<const Document> documents, std::int64_t context, std::int64_t batch,
              std::uint64_t seed, bool document_mask = true);

  /// The batch of micro-step `index` >= 0, counted from the start of the run.
  HostBatch at(std::int64_t index) const;

  std::int64_t windows() const { return windows_; }  ///< per epoch
  std::int64_t tokens() const { return static_cast<std::int64_t>(stream_.size()); }

 private:
  std::int64_t window_at(std::int64_t epoch, std::int64_t rank) const;

  std::vector<std::uint16_t> stream_;
  std::int64_t context_, batch_, windows_;
  std::uint64_t seed_;
  bool document_mask_;
  // The order of the epoch last asked for: saves time, changes no result.
  mutable std::int64_t cached_epoch_ = -1;
  mutable std::vector<std::int64_t> cached_order_;
};

/// The validation text in order, every target once. The last window is filled up with targets of -1, and the
/// last batch may hold fewer sequences.
class ValidationBatches {
 public:
  ValidationBatches(std::span<const Document> documents, std::int64_t context, std::int64_t batch,
                    bool document_mask = true);

  std::int64_t count() const;
  HostBatch at(std::int64_t index) const;  ///< 0 <= index < count()

  std::int64_t windows() const { return windows_; }
  std::int64_t tokens() const { return static_cast<std::int64_t>(stream_.size()); }

 private:
  std::vector<std::uint16_t> stream_;
  std::int64_t context_, batch_, windows_;
  bool document_mask_;
};

}  // namespace quaver
