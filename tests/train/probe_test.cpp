/// Probes of models whose insides are known, or computed in another way.
#include "train/probe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "nn/block.h"
#include "quaver/backend.h"
#include "train/fp8_state.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

/// Sets every element of the parameters whose names end so.
void fill_parameters(LanguageModel& model, const std::string& ending, double value) {
  struct Visitor : ModuleVisitor {
    void parameter(const std::string& name, Parameter& parameter) override {
      if (!name.ends_with(ending)) return;
      backend->fill(parameter.value, value);
      ++parameter.version;
      ++found;
    }
    Backend* backend = nullptr;
    std::string ending;
    double value = 0;
    int found = 0;
  } visitor;
  visitor.backend = &model.backend();
  visitor.ending = ending;
  visitor.value = value;
  model.visit("", visitor);
  ASSERT_GT(visitor.found, 0) << ending;
}

class ProbeTest : public testing::Test {
 protected:
  ProbeTest() {
    write_text(folder);
    config = micro_config(folder);
    config.model.packed_qkv = false;
    config.precision = Precision::fp32;
    config.model.init_std = 0.3f;  // attention far from even
  }

  void make_model() {
    backend = make_backend("cpu", 2);
    model = std::make_unique<LanguageModel>(backend, config.model, 7);
    batches.emplace(validation_batches(config));
  }

  ModelProbe measure() {
    Context context(*backend, DType::f32);
    return probe(*model, context, std::nullopt, *batches, kBatches);
  }

  static constexpr std::int64_t kBatches = 3;
  TemporaryFolder folder;
  RunConfig config;
  std::shared_ptr<Backend> backend;
  std::unique_ptr<LanguageModel> model;
  std::optional<ValidationBatches> batches;
};

TEST_F(ProbeTest, WithoutQueriesAttentionIsEven) {
  make_model();
  fill_parameters(*model, "q_proj.weight", 0);
  const ModelProbe found = measure();
  double uniform = 0;
  std::int64_t queries = 0, tokens = 0;
  for (const std::int64_t index : batches->spread(kBatches)) {
    const HostBatch batch = batches->at(index);
    for (std::size_t row = 0; row < batch.tokens.size(); ++row) {
      const int keys = batch.positions[row] - batch.first_key[row] + 1;
      if (keys > 1) uniform += 1.0 / keys, ++queries;
    }
    tokens += static_cast<std::int64_t>(batch.tokens.size());
  }
  EXPECT_EQ(found.tokens, tokens);
  EXPECT_NEAR(found.uniform_share, uniform / static_cast<double>(queries), 1e-12);
  for (const BlockProbe& block : found.blocks) {
    ASSERT_EQ(block.first_token_share.size(), 4u);
    // lse is rounded to FP32: exp of it is off by its last bit, less than 1e-6 for logarithms below 8.
    for (const double share : block.first_token_share) EXPECT_NEAR(share, found.uniform_share, 1e-6);
  }
}

/// The whole softmax in double, from q and k of a forward pass: the probability of the first key, by head.
std::vector<double> direct_shares(Backend& backend, const Attention::Saved& saved, const HostBatch& batch) {
  const AttentionShape& shape = saved.shape;
  const std::vector<float> q = download(backend, saved.q), k = download(backend, saved.k);
  std::vector<double> shares(static_cast<std::size_t>(shape.heads));
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    const std::int64_t group = head / (shape.heads / shape.kv_heads);
    for (std::int64_t row = 0; row < batch.batch * batch.length; ++row) {
      const std::int64_t position = batch.positions[row], first = batch.first_key[row];
      if (first == position) continue;
      double denominator = 0, numerator = 0;
      for (std::int64_t key = position; key >= first; --key) {
        double score = 0;
        for (std::int64_t d = 0; d < shape.head_dim; ++d) {
          score +=
              static_cast<double>(q[(row * shape.heads + head) * shape.head_dim + d]) *
              static_cast<double>(k[((row - position + key) * shape.kv_heads + group) * shape.head_dim + d]);
        }
        numerator = std::exp(score / std::sqrt(static_cast<double>(shape.head_dim)));
        denominator += numerator;
      }
      shares[static_cast<std::size_t>(head)] += numerator / denominator;
    }
  }
  return shares;
}

TEST_F(ProbeTest, SharesAreThoseOfTheWholeSoftmax) {
  for (const QkNorm norm : {QkNorm::none, QkNorm::post_rope}) {
    config.model.qk_norm = norm;
    make_model();
    std::vector<std::vector<double>> sums(2, std::vector<double>(4));
    std::int64_t queries = 0;
    for (const std::int64_t index : batches->spread(kBatches)) {
      const HostBatch host = batches->at(index);
      Context context(*backend, DType::f32);
      LanguageModel::Saved saved;
      model->forward(context, upload_batch(*backend, host).tokens, &saved);
      for (std::size_t layer = 0; layer < 2; ++layer) {
        const auto shares = direct_shares(*backend, saved.blocks[layer]->attention, host);
        for (std::size_t head = 0; head < 4; ++head) sums[layer][head] += shares[head];
      }
      for (std::size_t row = 0; row < host.tokens.size(); ++row)
        queries += host.positions[row] > host.first_key[row];
    }
    const ModelProbe found = measure();
    for (std::size_t layer = 0; layer < 2; ++layer) {
      for (std::size_t head = 0; head < 4; ++head) {
        const double expected = sums[layer][head] / static_cast<double>(queries);
        // The kernel's scores are FP32 sums of 8 products.
        EXPECT_NEAR(found.blocks[layer].first_token_share[head], expected, 1e-4 * expected);
      }
      EXPECT_NEAR(found.blocks[layer].mean_first_token_share(),
                  std::accumulate(sums[layer].begin(), sums[layer].end(), 0.0) / 4 / queries, 1e-4);
    }
  }
}

TEST_F(ProbeTest, AResidualStreamThatNobodyWritesToIsTheEmbedding) {
  make_model();
  fill_parameters(*model, "out_proj.weight", 0);
  fill_parameters(*model, "down_proj.weight", 0);
  float largest = 0;
  const auto parameters = parameters_of(*backend, *model);
  const auto embedding = std::find_if(parameters.begin(), parameters.end(),
                                      [](const NamedValues& p) { return p.name == "embedding.weight"; });
  for (const std::int64_t index : batches->spread(kBatches)) {
    for (const std::int32_t token : batches->at(index).tokens) {
      for (std::int64_t i = 0; i < config.model.width; ++i)
        largest = std::max(largest, std::abs(embedding->value[token * config.model.width + i]));
    }
  }
  const ModelProbe found = measure();
  for (const BlockProbe& block : found.blocks) EXPECT_EQ(block.largest_residual, largest);
  EXPECT_EQ(found.largest_output, largest);
  EXPECT_EQ(found.largest_residual(), largest);
}

TEST_F(ProbeTest, TheLargestMagnitudeMayBeNegativeAndAnywhere) {
  config.model.position = PositionKind::learned;
  config.model.mlp_bias = true;
  make_model();
  fill_parameters(*model, "blocks.1.mlp.down_proj.weight", 0);
  fill_parameters(*model, "blocks.1.mlp.down_proj.bias", -1000);
  const ModelProbe found = measure();
  EXPECT_LT(found.blocks[1].largest_residual, 500);
  EXPECT_NEAR(found.largest_output, 1000, 500);
  EXPECT_EQ(found.largest_residual(), found.largest_output);
}

TEST_F(ProbeTest, GatesThatReadNothingOpenByTheirBiasAlone) {
  for (const GateKind gate : {GateKind::headwise, GateKind::elementwise}) {
    config.model.gate = gate;
    config.model.gate_bias = true;
    for (const float bias : {0.0f, -3.0f}) {
      config.model.gate_bias_init = bias;
      make_model();
      fill_parameters(*model, "attention.gate_proj.weight", 0);
      const ModelProbe found = measure();
      ASSERT_TRUE(found.has_gates);
      for (const BlockProbe& block : found.blocks) {
        EXPECT_NEAR(block.gate_mean, 1 / (1 + std::exp(-static_cast<double>(bias))), 1e-6);
        EXPECT_EQ(block.gate_low_share, bias < -2 ? 1 : 0);
      }
    }
  }
  config.model.gate = GateKind::none;
  make_model();
  EXPECT_FALSE(measure().has_gates);
}

TEST_F(ProbeTest, LeavesNoTraceInTheFp8StateWhateverThePolicy) {
  config.precision = Precision::fp8;
  config.fp8.overrides = {{"blocks.0.*", {false, false, true}, kBf16},
                          {"*.down_proj", {true, false, false}, kBf16}};
  Trainer trainer(make_backend("cpu", 2), config);
  const HostBatch batch = training_batches(config).at(0);
  trainer.step(1e-3f, std::span(&batch, 1));
  const auto slots = [&] {
    std::vector<std::optional<SlotState>> all;
    for (const LinearState& state : capture_fp8_state(trainer.backend(), trainer.model()))
      for (const auto& slot : kSlots) all.push_back(state.*slot.second);
    return all;
  };
  const auto before = slots();
  const ValidationBatches validation = validation_batches(config);
  Context context(trainer.backend());
  const ModelProbe found = probe(trainer.model(), context, config.fp8.make_recipe(), validation, 2);
  EXPECT_EQ(slots(), before);
  EXPECT_GT(found.largest_residual(), 0);
}

}  // namespace
}  // namespace quaver
