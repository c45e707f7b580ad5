#include "train/probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "nn/block.h"
#include "quaver/backend.h"
#include "train/loss.h"

namespace quaver {
namespace {

double largest_magnitude(Backend& backend, const Tensor& x) {
  float largest = 0;
  for (const float value : download(backend, x)) largest = std::max(largest, std::abs(value));
  return largest;
}

/// The matrices of one attention on the host.
struct HostAttention {
  HostAttention(Backend& backend, const Attention::Saved& saved)
      : shape(saved.shape),
        q(download(backend, saved.q)),
        k(download(backend, saved.k)),
        lse(download(backend, saved.lse)) {}

  /// The probability with which the query of `row` attends to the key of `key_row`, in one head.
  double probability(std::int64_t row, std::int64_t key_row, std::int64_t head) const {
    const std::int64_t kv_head = head * shape.kv_heads / shape.heads;
    const float* query = &q[static_cast<std::size_t>((row * shape.heads + head) * shape.head_dim)];
    const float* key = &k[static_cast<std::size_t>((key_row * shape.kv_heads + kv_head) * shape.head_dim)];
    const double product = std::inner_product(query, query + shape.head_dim, key, 0.0);
    return std::exp(static_cast<double>(shape.scale) * product -
                    static_cast<double>(lse[static_cast<std::size_t>(row * shape.heads + head)]));
  }

  AttentionShape shape;
  std::vector<float> q, k, lse;
};

/// A query that sees more than itself, and the row of the first key that it sees.
struct Query {
  std::int64_t row, first_row, keys;
};

std::vector<Query> queries_of(const HostBatch& batch) {
  std::vector<Query> queries;
  for (std::int64_t row = 0; row < batch.batch * batch.length; ++row) {
    const std::int64_t position = row % batch.length, first = batch.first_key[static_cast<std::size_t>(row)];
    if (first < position) queries.push_back({row, row - position + first, position - first + 1});
  }
  return queries;
}

/// Sums over batches, divided at the end.
class Probe {
 public:
  Probe(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe)
      : model_(model), context_(context), recipe_(recipe) {
    const ModelConfig& config = model.config();
    result_.has_gates = gate_features(config) > 0;
    result_.blocks.resize(static_cast<std::size_t>(config.layers));
    for (BlockProbe& block : result_.blocks)
      block.first_token_share.assign(static_cast<std::size_t>(config.heads), 0.0);
  }

  void add(const HostBatch& host) {
    Backend& backend = model_.backend();
    const DeviceBatch batch = upload_batch(backend, host);
    LanguageModel::Saved saved;
    forward_logits(model_, context_, recipe_, batch.tokens, &saved);
    const std::vector<Query> queries = queries_of(host);
    for (const Query& query : queries) result_.uniform_share += 1.0 / static_cast<double>(query.keys);
    queries_ += static_cast<std::int64_t>(queries.size());
    result_.tokens += host.batch * host.length;
    for (std::size_t layer = 0; layer < result_.blocks.size(); ++layer)
      add_block(*saved.blocks[layer], queries, result_.blocks[layer]);
    raise(result_.largest_output, saved.final_norm.x);
  }

  ModelProbe finish() {
    require(queries_ > 0, "probe: no token of the validation text has another one before it in its document");
    for (BlockProbe& block : result_.blocks) {
      for (double& share : block.first_token_share) share /= static_cast<double>(queries_);
      if (gates_ == 0) continue;
      block.gate_mean /= static_cast<double>(gates_);
      block.gate_low_share /= static_cast<double>(gates_);
    }
    result_.uniform_share /= static_cast<double>(queries_);
    return std::move(result_);
  }

 private:
  void raise(double& largest, const Tensor& x) {
    largest = std::max(largest, largest_magnitude(model_.backend(), x));
  }

  void add_block(const BlockSaved& saved, const std::vector<Query>& queries, BlockProbe& block) {
    raise(block.largest_residual, saved.attention_norm.x);
    raise(block.largest_residual, saved.mlp_norm.x);
    const HostAttention attention(model_.backend(), saved.attention);
    for (const Query& query : queries) {
      for (std::size_t head = 0; head < block.first_token_share.size(); ++head)
        block.first_token_share[head] +=
            attention.probability(query.row, query.first_row, static_cast<std::int64_t>(head));
    }
    if (result_.has_gates) add_gates(saved.attention, block);
  }

  /// The factors are what the model's own operation makes of ones. A headwise gate counts head_dim times.
  void add_gates(const Attention::Saved& saved, BlockProbe& block) {
    Backend& backend = model_.backend();
    const Tensor ones = backend.allocate(saved.o.dtype(), saved.o.shape());
    backend.fill(ones, 1);
    const Tensor factors = backend.allocate(saved.o.dtype(), saved.o.shape());
    backend.gate(model_.config().gate_activation, ones, saved.projected.gate, {factors, {}, {}});
    const std::vector<float> values = download(backend, factors);
    for (const float value : values) {
      block.gate_mean += static_cast<double>(value);
      block.gate_low_share += std::abs(value) < kLowGate;
    }
    if (&block == &result_.blocks.front()) gates_ += static_cast<std::int64_t>(values.size());
  }

  LanguageModel& model_;
  Context& context_;
  const std::optional<Recipe>& recipe_;
  ModelProbe result_;
  std::int64_t queries_ = 0, gates_ = 0;  // of one block
};

}  // namespace

double BlockProbe::mean_first_token_share() const {
  return std::accumulate(first_token_share.begin(), first_token_share.end(), 0.0) /
         static_cast<double>(first_token_share.size());
}

double ModelProbe::largest_residual() const {
  double largest = largest_output;
  for (const BlockProbe& block : blocks) largest = std::max(largest, block.largest_residual);
  return largest;
}

ModelProbe probe(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                 const ValidationBatches& batches, std::int64_t max_batches) {
  const NoGradients evaluation(context);
  Probe sums(model, context, recipe);
  for (const std::int64_t index : batches.spread(max_batches)) sums.add(batches.at(index));
  return sums.finish();
}

}  // namespace quaver
