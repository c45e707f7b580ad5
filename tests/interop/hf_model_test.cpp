#include "interop/hf_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "formats/safetensors.h"
#include "interop/hf_weights.h"
#include "support/errors.h"
#include "train/run_folder.h"
#include "train/training_run.h"
#include "train/training_support.h"

namespace quaver {
namespace {

class HfModelTest : public testing::Test {
 protected:
  HfModelTest() {
    write_text(folder);
    config = micro_config(folder);
    config.model.qk_norm = QkNorm::pre_rope;
    config.threads = 1;
  }

  /// A run with initial weights, exported.
  void export_run() {
    LanguageModel model(make_backend("cpu", 1), config.model, 1);
    create_run_folder(config);
    save_model(config, model, 0);
    export_hf_model({config.run.dir, out});
  }
  HfImportOptions import_options() const {
    HfImportOptions options;
    options.folder = out;
    options.run = folder.path("imported");
    return options;
  }
  std::string import_refusal(ErrorKind kind, const HfImportOptions& options) const {
    const std::string message = error_message(kind, [&] { import_hf_model(options); });
    EXPECT_FALSE(std::filesystem::exists(options.run)) << message;
    return message;
  }
  /// The reason for which an export whose weights were changed is refused.
  template <typename Change>
  std::string refusal_after(Change change) const {
    const std::string path = out + "/model.safetensors";
    const Safetensors original = read_safetensors(path);
    Safetensors file = original;
    change(file.arrays);
    write_safetensors(path, file.arrays, file.metadata);
    const std::string message = import_refusal(ErrorKind::data, import_options());
    write_safetensors(path, original.arrays, original.metadata);
    EXPECT_TRUE(message.starts_with(out)) << message;
    return message;
  }

  TemporaryFolder folder;
  RunConfig config;
  const std::string out = folder.path("export");
};

NamedArray& named(std::vector<NamedArray>& arrays, const std::string& name) {
  return *std::find_if(arrays.begin(), arrays.end(), [&](const NamedArray& a) { return a.name == name; });
}

TEST_F(HfModelTest, MissingUnknownAndMisshapenWeightsAreNamed) {
  export_run();
  using Arrays = std::vector<NamedArray>;
  const std::string q = "model.layers.1.self_attn.q_proj.weight", up = "model.layers.0.mlp.up_proj.weight";
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) { named(a, q).name = "model.layers.2.x"; }),
                       "the weight " + q + " is missing"));
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) {
                         a.push_back(named(a, q));
                         a.back().name = "model.layers.2.x";
                       }),
                       "the weight model.layers.2.x is unknown"));
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) {
                         named(a, q).shape = {32, 64};
                       }),
                       "asks for the shape [64, 32], found [32, 64]"));
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) {
                         named(a, up).shape = {32, 64};
                       }),
                       "blocks.0.mlp.up_proj.weight: expected the shape [64, 32], found [32, 64]"));
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) { named(a, up).dtype = DType::i32; }),
                       up + " is of type i32; supported: f32, bf16"));
  EXPECT_TRUE(contains(refusal_after([&](Arrays& a) {
                         a.push_back(named(a, "model.embed_tokens.weight"));
                         a.back().name = "lm_head.weight";
                         a.back().bytes.front() ^= std::byte{1};
                       }),
                       "lm_head.weight differs from model.embed_tokens.weight"));
  EXPECT_NO_THROW(import_hf_model(import_options()));
}

TEST_F(HfModelTest, AnIndexMustSayWhatTheShardsHold) {
  export_run();
  const std::string index = out + "/model.safetensors.index.json";
  const auto refusal = [&](const std::string& text) {
    write_file_atomically(index, text);
    return import_refusal(ErrorKind::data, import_options());
  };
  EXPECT_TRUE(contains(refusal("{"), "weight_map"));
  EXPECT_TRUE(contains(refusal(R"({"weight_map":{"a":"../model.safetensors"}})"), "a file in this folder"));
  EXPECT_TRUE(contains(refusal(R"({"weight_map":{"a":1}})"), "a file in this folder"));
  EXPECT_TRUE(contains(refusal(R"({"weight_map":{"a":"b.safetensors"}})"), "b.safetensors: cannot open"));
  EXPECT_TRUE(contains(refusal(R"({"weight_map":{"a":"model.safetensors"}})"), "which no shard does"));
}

TEST_F(HfModelTest, OverridesMayNotContradictTheWeights) {
  export_run();
  HfImportOptions options = import_options();
  options.overrides = {"model.rope_theta=500"};
  EXPECT_TRUE(contains(import_refusal(ErrorKind::usage, options), "model.rope_theta"));
  options.overrides = {"run.dir=" + folder.path("elsewhere")};
  EXPECT_TRUE(contains(import_refusal(ErrorKind::usage, options), "run.dir"));
  options.overrides = {"model.qkv=separate", "model.gate_up=packed", "model.context=16", "precision=fp32",
                       "train.lr=0.5"};
  import_hf_model(options);
  const LoadedRun run = load_run(options.run);
  EXPECT_FALSE(run.config.model.packed_qkv);
  EXPECT_TRUE(run.config.model.packed_gate_up);
  EXPECT_EQ(run.config.model.context, 16);
  EXPECT_EQ(run.config.precision, Precision::fp32);
  EXPECT_EQ(run.step, 0);
}

TEST_F(HfModelTest, HeadwiseNeedsEqualRows) {
  export_run();
  HfImportOptions options = import_options();
  options.headwise_gate = true;
  EXPECT_TRUE(contains(import_refusal(ErrorKind::data, options), "differ within a head"));
}

TEST_F(HfModelTest, AFolderIsNotOverwritten) {
  export_run();
  EXPECT_TRUE(contains(error_message(ErrorKind::usage,
                                     [&] {
                                       export_hf_model({config.run.dir, out});
                                     }),
                       "already holds a model"));
  import_hf_model(import_options());
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { import_hf_model(import_options()); }),
                       "already holds a run"));
}

/// 1 + (gain - 1) in FP32: exact from 0.5 on (both operations are), elsewhere within half a unit in the last
/// place of numbers in [0.5, 1), which is 2^-25.
TEST_F(HfModelTest, GainsOfGatedModelsAreExactFromOneHalfOn) {
  LanguageModel model(make_backend("cpu", 1), config.model, 1);
  FloatArrays arrays = read_parameters(model);
  FloatArray& gain = arrays.at("final_norm.gain");
  for (std::size_t i = 0; i < gain.values.size(); ++i)
    gain.values[i] = std::nextafter(0.05f + 0.117f * static_cast<float>(i), 9.0f);
  const FloatArray original = gain;
  HfModel described;
  described.architecture = HfArchitecture::qwen3_5;
  described.config = config.model;
  const FloatArrays back = from_hf_weights(described, to_hf_weights(config.model, arrays));
  const FloatArray& found = back.at("final_norm.gain");
  for (std::size_t i = 0; i < found.values.size(); ++i) {
    const float value = original.values[i];
    EXPECT_LE(std::fabs(found.values[i] - value), value >= 0.5f ? 0.0f : 0x1p-25f) << value;
  }
}

TEST_F(HfModelTest, AVocabularyWithoutTheByteTokensGetsNoTokenizer) {
  config.model.vocab = 256;
  export_run();
  EXPECT_FALSE(std::filesystem::exists(out + "/tokenizer.json"));
  const auto json = nlohmann::json::parse(read_file(out + "/config.json"));
  EXPECT_TRUE(json["bos_token_id"].is_null());
}

/// What the first step of a run begins with.
struct FirstWeights : TrainingObserver {
  void gradients_ready(std::int64_t step, LanguageModel& model) override {
    if (step == 1) weights = read_parameters(model);
  }
  FloatArrays weights;
};

TEST_F(HfModelTest, TrainingBeginsWithAnImportedRunsWeights) {
  export_run();
  import_hf_model(import_options());
  RunConfig next = config;
  next.train.seed = 99;
  next.train.steps = 1;
  next.train.init = import_options().run;
  next.run.dir = folder.path("continued");
  FirstWeights observer;
  run_training(next, observer);
  LoadedRun original = load_run(config.run.dir);
  const FloatArrays expected = read_parameters(*original.model);
  ASSERT_EQ(observer.weights.size(), expected.size());
  for (const auto& [name, array] : expected)
    EXPECT_EQ(observer.weights.at(name).values, array.values) << name;

  next.run.dir = folder.path("other");
  next.model.gate_activation = GateActivation::silu;
  EXPECT_TRUE(contains(error_message(ErrorKind::usage, [&] { run_training(next, observer); }),
                       "model.gate_activation: differs from that of train.init"));
  EXPECT_FALSE(std::filesystem::exists(next.run.dir));
}

}  // namespace
}  // namespace quaver
