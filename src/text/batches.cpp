#include "text/batches.h"

#include <algorithm>
#include <numeric>
#include <span>
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

void check_sizes(std::int64_t tokens, std::int64_t context, std::int64_t batch) {
  require(context >= 1 && batch >= 1, "batches: expected context >= 1 and batch >= 1, found {} and {}",
          context, batch);
  require(tokens > context, "batches: {} tokens do not fill one sequence of context + 1 = {}", tokens,
          context + 1);
}

HostBatch make_batch(std::int64_t length) {
  HostBatch batch;
  batch.length = length;
  return batch;
}

void check_token(std::int32_t token, const TokenRules& rules) {
  if (token >= 0 && token < rules.vocab) return;
  fail(ErrorKind::data,
       "the data holds token {}, but ids are below {}. Hint: data.tokenizer names the tokenizer of "
       "shards, and model.vocab holds its ids",
       static_cast<std::uint32_t>(token), rules.vocab);
}

/// Appends one sequence. `window` holds length + 1 tokens, or fewer at the end of the text.
void append_window(HostBatch& batch, const TokenRules& rules, std::span<const std::int32_t> window) {
  for (const std::int32_t token : window) check_token(token, rules);
  const auto token_at = [&](std::int64_t i) {
    return i < static_cast<std::int64_t>(window.size()) ? window[static_cast<std::size_t>(i)] : -1;
  };
  std::int32_t document_begin = 0;
  ++batch.batch;
  for (std::int64_t i = 0; i < batch.length; ++i) {
    const std::int32_t token = token_at(i), target = token_at(i + 1);
    const auto position = static_cast<std::int32_t>(i);
    if (rules.document_mask && token == rules.document_token) document_begin = position;
    batch.tokens.push_back(token < 0 ? std::max(0, rules.document_token) : token);
    batch.targets.push_back(target);
    batch.positions.push_back(position);
    batch.first_key.push_back(document_begin);
    batch.target_count += target >= 0;
    if (target >= 0 && !rules.token_bytes.empty())
      batch.target_bytes += rules.token_bytes[static_cast<std::size_t>(target)];
  }
}

}  // namespace

BatchSource::BatchSource(const TokenStream& tokens, TokenRules rules, std::int64_t context,
                         std::int64_t batch, std::uint64_t seed)
    : stream_(tokens.reordered(shuffled(tokens.segments(), Random(seed, stable_hash("text/documents"))))),
      rules_(std::move(rules)),
      context_(context),
      batch_(batch),
      seed_(seed) {
  check_sizes(stream_.size(), context, batch);
  windows_ = (stream_.size() + context - 1) / context;
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
  std::vector<std::int32_t> window(static_cast<std::size_t>(context_) + 1);
  for (std::int64_t i = index * batch_; i < (index + 1) * batch_; ++i) {
    const std::int64_t begin = window_at(i / windows_, i % windows_) * context_;
    // The text is longer than a window: it begins anew at most once in one.
    const auto first = static_cast<std::size_t>(std::min(context_ + 1, tokens() - begin));
    stream_.read(begin, std::span(window).first(first));
    stream_.read(0, std::span(window).subspan(first));
    append_window(batch, rules_, window);
  }
  return batch;
}

ValidationBatches::ValidationBatches(TokenStream tokens, TokenRules rules, std::int64_t context,
                                     std::int64_t batch)
    : stream_(std::move(tokens)), rules_(std::move(rules)), context_(context), batch_(batch) {
  check_sizes(stream_.size(), context, batch);
  windows_ = (stream_.size() - 1 + context - 1) / context;
}

std::int64_t ValidationBatches::count() const {
  return (windows_ + batch_ - 1) / batch_;
}

std::vector<std::int64_t> ValidationBatches::spread(std::int64_t max_batches) const {
  const std::int64_t all = count(), chosen = max_batches == 0 ? all : std::min(max_batches, all);
  std::vector<std::int64_t> indices(static_cast<std::size_t>(chosen));
  for (std::int64_t i = 0; i < chosen; ++i) indices[static_cast<std::size_t>(i)] = i * all / chosen;
  return indices;
}

HostBatch ValidationBatches::at(std::int64_t index) const {
  require(index >= 0 && index < count(), "batches: expected a validation batch in [0, {}), found {}", count(),
          index);
  HostBatch batch = make_batch(context_);
  for (std::int64_t window = index * batch_; window < std::min((index + 1) * batch_, windows_); ++window) {
    const std::int64_t begin = window * context_;
    std::vector<std::int32_t> tokens_here(static_cast<std::size_t>(std::min(context_ + 1, tokens() - begin)));
    stream_.read(begin, tokens_here);
    append_window(batch, rules_, tokens_here);
  }
  return batch;
}

}  // namespace quaver
