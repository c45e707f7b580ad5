#include "text/batches.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/random.h"

namespace quaver {
namespace {

/// 0 .. count - 1 in an order drawn from `random` (Fisher and Yates).
std::vector<std::int64_t> shuffled(std::int64_t count, const Random& random) {
  std::vector<std::int64_t> order(count);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t i = count - 1; i > 0; --i) {
    std::swap(order[i],
              order[random.below(static_cast<std::uint64_t>(i), static_cast<std::uint64_t>(i) + 1)]);
  }
  return order;
}

std::vector<std::uint16_t> pack(std::span<const Document> documents, std::span<const std::int64_t> order) {
  std::size_t tokens = documents.size();
  for (const Document& document : documents) tokens += document.text.size();
  std::vector<std::uint16_t> stream;
  stream.reserve(tokens);
  for (const std::int64_t index : order) {
    stream.push_back(kDocumentToken);
    for (const char byte : documents[index].text) stream.push_back(static_cast<unsigned char>(byte));
  }
  return stream;
}

void check_sizes(std::size_t tokens, std::int64_t context, std::int64_t batch) {
  require(context >= 1 && batch >= 1, "batches: expected context >= 1 and batch >= 1, found {} and {}",
          context, batch);
  require(static_cast<std::int64_t>(tokens) > context,
          "batches: {} tokens do not fill one sequence of context + 1 = {}", tokens, context + 1);
}

HostBatch make_batch(std::int64_t length) {
  HostBatch batch;
  batch.length = length;
  return batch;
}

/// Appends one sequence. `token_at(i)`, 0 <= i <= length, is the window's i-th token, -1 after the end of the
/// text.
template <typename TokenAt>
void append_window(HostBatch& batch, bool document_mask, TokenAt token_at) {
  std::int32_t document_begin = 0;
  ++batch.batch;
  for (std::int64_t i = 0; i < batch.length; ++i) {
    const std::int32_t token = token_at(i), target = token_at(i + 1);
    const auto position = static_cast<std::int32_t>(i);
    if (document_mask && token == kDocumentToken) document_begin = position;
    batch.tokens.push_back(token < 0 ? kDocumentToken : token);
    batch.targets.push_back(target);
    batch.positions.push_back(position);
    batch.first_key.push_back(document_begin);
    batch.target_count += target >= 0;
    batch.target_bytes += target >= 0 && target < kDocumentToken;
  }
}

}  // namespace

BatchSource::BatchSource(std::span<const Document> documents, std::int64_t context, std::int64_t batch,
                         std::uint64_t seed, bool document_mask)
    : context_(context), batch_(batch), seed_(seed), document_mask_(document_mask) {
  const Random random(seed, stable_hash("text/documents"));
  stream_ = pack(documents, shuffled(static_cast<std::int64_t>(documents.size()), random));
  check_sizes(stream_.size(), context, batch);
  windows_ = (tokens() + context - 1) / context;
}

std::int64_t BatchSource::window_at(std::int64_t epoch, std::int64_t rank) const {
  if (epoch != cached_epoch_) {
    cached_order_ =
        shuffled(windows_, Random(seed_, stable_hash("text/windows") + static_cast<std::uint64_t>(epoch)));
    cached_epoch_ = epoch;
  }
  return cached_order_[rank];
}

HostBatch BatchSource::at(std::int64_t index) const {
  require(index >= 0, "batches: expected a micro-step >= 0, found {}", index);
  HostBatch batch = make_batch(context_);
  for (std::int64_t i = index * batch_; i < (index + 1) * batch_; ++i) {
    const std::int64_t begin = window_at(i / windows_, i % windows_) * context_;
    append_window(batch, document_mask_,
                  [&](std::int64_t offset) -> std::int32_t { return stream_[(begin + offset) % tokens()]; });
  }
  return batch;
}

ValidationBatches::ValidationBatches(std::span<const Document> documents, std::int64_t context,
                                     std::int64_t batch, bool document_mask)
    : context_(context), batch_(batch), document_mask_(document_mask) {
  std::vector<std::int64_t> order(documents.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  stream_ = pack(documents, order);
  check_sizes(stream_.size(), context, batch);
  windows_ = (tokens() - 1 + context - 1) / context;
}

std::int64_t ValidationBatches::count() const {
  return (windows_ + batch_ - 1) / batch_;
}

HostBatch ValidationBatches::at(std::int64_t index) const {
  require(index >= 0 && index < count(), "batches: expected a validation batch in [0, {}), found {}", count(),
          index);
  HostBatch batch = make_batch(context_);
  for (std::int64_t window = index * batch_; window < std::min((index + 1) * batch_, windows_); ++window) {
    const std::int64_t begin = window * context_;
    append_window(batch, document_mask_, [&](std::int64_t offset) -> std::int32_t {
      return begin + offset < tokens() ? stream_[begin + offset] : -1;
    });
  }
  return batch;
}

}  // namespace quaver
