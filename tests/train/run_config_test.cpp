#include "train/run_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "base/files.h"
#include "support/errors.h"
#include "support/temporary_folder.h"
#include "train/run_config_schema.h"

namespace quaver {
namespace {

using Overrides = std::vector<std::string>;

RunConfig parse(const std::string& text, const Overrides& overrides = {}) {
  return parse_run_config(text, "x.toml", overrides);
}

std::string refusal(const std::string& text, const Overrides& overrides = {}) {
  return error_message(ErrorKind::usage, [&] { parse(text, overrides); });
}

/// The message for an override of an otherwise valid file.
std::string override_refusal(const std::string& override) {
  return refusal("data.path = \"d\"", {override});
}

RunConfig with(const Overrides& overrides) {
  return parse("data.path = \"d\"", overrides);
}

TEST(RunConfig, ReadsEveryKindOfField) {
  const RunConfig config = parse(R"(
precision = "bf16"
threads = 3
products = "fast"
[model]
width = 48
qkv = "separate"
gate_up = "packed"
gate = "headwise"
gate_activation = "silu"
qk_norm = "post_rope"
position = "learned"
mlp = "gelu"
norm = "layer"
tie_embeddings = false
gate_bias_init = 2
[data]
path = "some/where"
val_fraction = 0.25
max_bytes = 1_000_000
[train]
seed = 9223372036854775807
lr = 1e-3
schedule = "wsd"
[fp8]
format = "e4m3"
amax_compute_algo = "max"
margin = -2
[run]
dir = "runs/some"
)");
  EXPECT_EQ(config.precision, Precision::bf16);
  EXPECT_EQ(config.threads, 3);
  EXPECT_EQ(config.products, Products::fast);
  EXPECT_EQ(config.model.width, 48);
  EXPECT_FALSE(config.model.packed_qkv);
  EXPECT_TRUE(config.model.packed_gate_up);
  EXPECT_EQ(config.model.gate, GateKind::headwise);
  EXPECT_EQ(config.model.gate_activation, GateActivation::silu);
  EXPECT_EQ(config.model.qk_norm, QkNorm::post_rope);
  EXPECT_EQ(config.model.position, PositionKind::learned);
  EXPECT_EQ(config.model.mlp, Activation::gelu);
  EXPECT_EQ(config.model.norm, NormKind::layer);
  EXPECT_FALSE(config.model.tie_embeddings);
  EXPECT_EQ(config.model.gate_bias_init, 2.0f);
  EXPECT_EQ(config.data.path, "some/where");
  EXPECT_EQ(config.data.val_fraction, 0.25);
  EXPECT_EQ(config.data.max_bytes, 1000000);
  EXPECT_EQ(config.train.seed, 9223372036854775807u);
  EXPECT_EQ(config.train.lr, 1e-3f);
  EXPECT_EQ(config.train.schedule, ScheduleKind::wsd);
  EXPECT_EQ(config.fp8.format, Fp8Format::e4m3);
  EXPECT_EQ(config.fp8.amax_compute_algo, AmaxCompute::max);
  EXPECT_EQ(config.fp8.margin, -2);
  EXPECT_EQ(config.run.dir, "runs/some");
}

TEST(RunConfig, WhatIsNotGivenHasItsDefault) {
  RunConfig expected;
  expected.data.path = "d";
  EXPECT_EQ(parse("[data]\npath = \"d\""), expected);
}

TEST(RunConfig, MakesTheRecipe) {
  const auto recipe = std::get<DelayedScaling>(
      with({"fp8.margin=1", "fp8.amax_history_len=7", "fp8.format=e4m3", "fp8.amax_compute_algo=max"})
          .fp8.make_recipe());
  EXPECT_EQ(recipe.margin, 1);
  EXPECT_EQ(recipe.amax_history_len, 7);
  EXPECT_EQ(recipe.fp8_format, Fp8Format::e4m3);
  EXPECT_EQ(recipe.amax_compute_algo, AmaxCompute::max);
}

constexpr const char* kOverrides = R"(
[data]
path = "d"
[fp8]
margin = 1
[[fp8.override]]
match = "blocks.{0,11}.*"
gemm = ["wgrad", "dgrad"]
recipe = "bf16"
why = "outliers: \"big\""
[[fp8.override]]
match = "lm_head"
recipe = "delayed"
)";

TEST(RunConfigOverrides, AreReadInTurn) {
  const Fp8Config fp8 = parse(kOverrides).fp8;
  ASSERT_EQ(fp8.overrides.size(), 2u);
  EXPECT_EQ(fp8.overrides[0],
            (Fp8Override{"blocks.{0,11}.*", {false, true, true}, "bf16", "outliers: \"big\""}));
  EXPECT_EQ(fp8.overrides[1], (Fp8Override{"lm_head", {true, true, true}, "delayed", ""}));
  EXPECT_EQ(fp8.margin, 1);
}

TEST(RunConfigOverrides, AreWrittenSoThatTheyAreReadTheSame) {
  const RunConfig config = parse(kOverrides, {"fp8.auto=true", "fp8.bf16_end_layers=1"});
  EXPECT_TRUE(config.fp8.measured);
  EXPECT_EQ(parse(to_toml(config)), config);
}

TEST(RunConfigOverrides, AreChecked) {
  const auto refused = [](const std::string& table) { return refusal("[[fp8.override]]\n" + table); };
  EXPECT_EQ(refused("match = 3"),
            "x.toml:2:9: fp8.override.match: expected a pattern of module names, found 3");
  EXPECT_EQ(refused("match = \"a{b\"\nrecipe = \"bf16\""),
            "x.toml:2:9: fp8.override.match: pattern \"a{b\": a { without its }");
  EXPECT_EQ(refused("match = \"a\"\nrecipe = \"fp4\""),
            "x.toml:3:10: fp8.override.recipe: expected one of \"bf16\", \"delayed\", \"current\", "
            "\"block\", \"mxfp8\", "
            "\"nvfp4\", found \"fp4\"");
  const std::string gemms = "expected an array of \"fprop\", \"dgrad\", \"wgrad\", found ";
  EXPECT_EQ(refused("gemm = \"wgrad\""), "x.toml:2:8: fp8.override.gemm: " + gemms + "\"wgrad\"");
  EXPECT_EQ(refused("gemm = []"), "x.toml:2:8: fp8.override.gemm: " + gemms + "an array");
  EXPECT_EQ(refused("gemm = [\"fprop\", \"bprop\"]"), "x.toml:2:8: fp8.override.gemm: " + gemms + "an array");
  EXPECT_EQ(refused("math = \"a\""),
            "x.toml:2:1: fp8.override.math: unknown key; known keys: match, gemm, operand, recipe, why");
  EXPECT_EQ(refused("recipe = \"bf16\""), "x.toml:1:1: fp8.override.match: missing");
  EXPECT_EQ(refused("match = \"a\""), "x.toml:1:1: fp8.override.recipe: missing");
  EXPECT_EQ(refusal("[fp8]\noverride = 3"),
            "x.toml:2:12: fp8.override: expected tables [[fp8.override]], found 3");
  EXPECT_TRUE(contains(refusal("[[fp8.overide]]\nmatch = \"a\""), "did you mean fp8.override?"));
  EXPECT_TRUE(contains(override_refusal("fp8.override=x"), "stand in run files only"));
}

TEST(RunConfigErrors, OutOfRange) {
  EXPECT_EQ(refusal("[data]\npath = \"d\"\n[train]\n  lr = -1\n"),
            "x.toml:4:8: train.lr: expected a number in (0, 1], found -1");
  EXPECT_EQ(refusal("[train]\nlr = 1.5"), "x.toml:2:6: train.lr: expected a number in (0, 1], found 1.5");
  EXPECT_EQ(refusal("[train]\nsteps = 0"),
            "x.toml:2:9: train.steps: expected an integer in [1, 1099511627776], found 0");
  EXPECT_EQ(refusal("[train]\nseed = -1"), "x.toml:2:8: train.seed: expected an integer >= 0, found -1");
  EXPECT_EQ(refusal("[train]\nclip = -0.5"),
            "x.toml:2:8: train.clip: expected a finite number >= 0, found -0.5");
  EXPECT_EQ(refusal("[train]\nclip = inf"),
            "x.toml:2:8: train.clip: expected a finite number >= 0, found inf");
  EXPECT_EQ(refusal("[train]\nlr = nan"), "x.toml:2:6: train.lr: expected a number in (0, 1], found nan");
  EXPECT_EQ(refusal("[model]\ngate_bias_init = 1e60"),
            "x.toml:2:18: model.gate_bias_init: expected a finite number, found 1e+60");
  EXPECT_TRUE(contains(refusal("[train]\nlr = 1e-60"), "found 1e-60"));  // would be stored as 0
  EXPECT_EQ(refusal("threads = 1025"), "x.toml:1:11: threads: expected an integer in [0, 1024], found 1025");
  EXPECT_EQ(refusal("[data]\nval_fraction = 1.0"),
            "x.toml:2:16: data.val_fraction: expected a number in (0, 1), found 1.0");
  EXPECT_EQ(refusal("[train]\nbeta2 = 1"), "x.toml:2:9: train.beta2: expected a number in [0, 1), found 1");
}

TEST(RunConfigErrors, WrongType) {
  EXPECT_EQ(refusal("[train]\nlr = \"fast\""),
            "x.toml:2:6: train.lr: expected a number in (0, 1], found \"fast\"");
  EXPECT_EQ(refusal("[train]\nlog_every = 10.0"),
            "x.toml:2:13: train.log_every: expected an integer >= 1, found 10.0");
  EXPECT_EQ(refusal("[train]\nlog_every = true"),
            "x.toml:2:13: train.log_every: expected an integer >= 1, found true");
  EXPECT_EQ(refusal("[data]\npath = 3"),
            "x.toml:2:8: data.path: expected a string that is not empty, found 3");
  EXPECT_EQ(refusal("[data]\npath = \"\""),
            "x.toml:2:8: data.path: expected a string that is not empty, found \"\"");
  EXPECT_EQ(refusal("[data]\ndocument_mask = 1"),
            "x.toml:2:17: data.document_mask: expected true or false, found 1");
  EXPECT_EQ(refusal("[train]\nlr = [1]"),
            "x.toml:2:6: train.lr: expected a number in (0, 1], found an array");
  EXPECT_EQ(refusal("[train.lr]\nx = 1"), "x.toml:1:1: train.lr: expected a number in (0, 1], found a table");
  EXPECT_EQ(refusal("[train]\nlr = 2024-01-01"),
            "x.toml:2:6: train.lr: expected a number in (0, 1], found 2024-01-01");
  EXPECT_EQ(refusal("train = 3"), "x.toml:1:9: train: expected a section [train], found 3");
  EXPECT_EQ(refusal("[[train]]\nlr = 1"), "x.toml:1:1: train: expected a section [train], found an array");
}

TEST(RunConfigErrors, UnknownChoice) {
  EXPECT_EQ(refusal("precision = \"fp4\""),
            "x.toml:1:13: precision: expected one of \"fp8\", \"bf16\", \"fp32\", found \"fp4\"; did you "
            "mean \"fp8\"?");
  EXPECT_EQ(refusal("[model]\ngate = \"elementwize\""),
            "x.toml:2:8: model.gate: expected one of \"none\", \"headwise\", \"elementwise\", found "
            "\"elementwize\"; did you mean "
            "\"elementwise\"?");
  EXPECT_EQ(refusal("[train]\nschedule = \"linear\""),
            "x.toml:2:12: train.schedule: expected one of \"cosine\", \"wsd\", found \"linear\"");
  EXPECT_TRUE(contains(refusal("backend = \"cpuu\""), "did you mean \"cpu\"?"));
  EXPECT_EQ(refusal("products = \"quick\""),
            "x.toml:1:12: products: expected one of \"exact\", \"fast\", found \"quick\"");
  EXPECT_TRUE(contains(refusal("precision = 8"), "found 8"));
}

TEST(RunConfigErrors, UnknownKeys) {
  EXPECT_EQ(refusal("[train]\nlr = 0.1\n stpes = 3"),
            "x.toml:3:2: train.stpes: unknown key; did you mean train.steps?");
  EXPECT_EQ(refusal("lr = 0.1"), "x.toml:1:1: lr: unknown key; did you mean train.lr?");
  EXPECT_EQ(refusal("[model]\nlr = 0.1"), "x.toml:2:1: model.lr: unknown key; did you mean train.lr?");
  EXPECT_EQ(refusal("presicion = \"fp8\""), "x.toml:1:1: presicion: unknown key; did you mean precision?");
  EXPECT_EQ(refusal("[run]\nsomething_else = 1"),
            "x.toml:2:1: run.something_else: unknown key; known keys: run.dir");
  EXPECT_TRUE(
      refusal("[train]\noptimizer.name = 1")
          .starts_with(
              "x.toml:2:1: train.optimizer: unknown key; known keys: train.steps, train.seed, train.lr, "));
  EXPECT_EQ(refusal("[trian]\nlr = 0.1"), "x.toml:1:2: trian: unknown section; did you mean [train]?");
  EXPECT_EQ(refusal("[something]\nlr = 0.1"),
            "x.toml:1:2: something: unknown section; the sections are [model], [data], [train], [optimizer], "
            "[fp8], [run]");
}

TEST(RunConfigErrors, DuplicateKeysAndBrokenToml) {
  const std::string twice = refusal("[train]\nlr = 0.1\nlr = 0.2\n");
  EXPECT_TRUE(twice.starts_with("x.toml:3:")) << twice;
  EXPECT_TRUE(contains(twice, "lr")) << twice;
  EXPECT_TRUE(refusal("[train]\n[data]\n[train]\n").starts_with("x.toml:3:"));
  EXPECT_TRUE(refusal("[train]\nlr 0.1").starts_with("x.toml:2:"));
  EXPECT_TRUE(refusal("[train]\nlr = \"0.1").starts_with("x.toml:2:"));
  EXPECT_TRUE(refusal("# \xFF\n").starts_with("x.toml:1:"));
}

TEST(RunConfigErrors, MissingPath) {
  EXPECT_TRUE(refusal("").starts_with("x.toml: data.path: missing; expected a string")) << refusal("");
  EXPECT_TRUE(refusal("\n[data]\nmax_bytes = 1").starts_with("x.toml:2:1: data.path: missing"));
  EXPECT_EQ(parse("", {"data.path=d"}).data.path, "d");
}

TEST(RunConfigErrors, FieldsThatDoNotFitEachOther) {
  EXPECT_EQ(refusal("data.path = \"d\"\n[model]\nheads = 6\nkv_heads = 4"),
            "x.toml:4:12: model.kv_heads: expected a divisor of model.heads = 6, found 4");
  EXPECT_EQ(refusal("data.path = \"d\"", {"model.kv_heads=4"}),
            "command line: model.kv_heads=4: model.kv_heads: expected a divisor of model.heads = 6, found 4");
  EXPECT_EQ(refusal("data.path = \"d\"\n[model]\nheads = 5"),
            "x.toml: model.kv_heads: expected a divisor of model.heads = 5, found 2");
}

TEST(Overrides, AreTomlValues) {
  EXPECT_EQ(with({"train.lr=0.25"}).train.lr, 0.25f);
  EXPECT_EQ(with({"train.lr= 1"}).train.lr, 1.0f);
  EXPECT_EQ(with({"train.steps=0x10"}).train.steps, 16);
  EXPECT_TRUE(with({"model.qkv_bias=true"}).model.qkv_bias);
  EXPECT_EQ(with({"model.gate=\"none\""}).model.gate, GateKind::none);
  EXPECT_EQ(with({"threads=2"}).threads, 2);
}

TEST(Overrides, TakeBareWordsAsStrings) {
  EXPECT_EQ(with({"model.gate=none"}).model.gate, GateKind::none);
  EXPECT_EQ(with({"precision=fp32"}).precision, Precision::fp32);
  EXPECT_EQ(with({"backend=reference"}).backend, "reference");
  EXPECT_EQ(with({"data.path=/some/where else.txt"}).data.path, "/some/where else.txt");
  EXPECT_EQ(with({"data.path=a=b"}).data.path, "a=b");
  EXPECT_EQ(with({"data.path=a\\b\"\n\x01"}).data.path, "a\\b\"\n\x01");
  EXPECT_EQ(with({"run.dir=2024"}).run.dir, "2024");
  EXPECT_EQ(with({"run.dir=true"}).run.dir, "true");
  EXPECT_EQ(with({"run.dir=2024-01-01"}).run.dir, "2024-01-01");
}

TEST(Overrides, WinOverTheFileAndOverEarlierOnes) {
  EXPECT_EQ(parse("[data]\npath = \"d\"\n[train]\nlr = 0.1", {"train.lr=0.2", "train.lr=0.3"}).train.lr,
            0.3f);
}

TEST(Overrides, Errors) {
  EXPECT_EQ(override_refusal("train.lr=abc"),
            "command line: train.lr=abc: expected a number in (0, 1], found \"abc\"");
  EXPECT_EQ(override_refusal("train.lr="),
            "command line: train.lr=: expected a number in (0, 1], found \"\"");
  EXPECT_EQ(override_refusal("train.lr=7"), "command line: train.lr=7: expected a number in (0, 1], found 7");
  EXPECT_EQ(override_refusal("train.lr={a=1}"),
            "command line: train.lr={a=1}: expected a number in (0, 1], found a table");
  EXPECT_EQ(override_refusal("train.lrr=1"),
            "command line: train.lrr=1: unknown key; did you mean train.lr?");
  EXPECT_EQ(override_refusal("lr=1"), "command line: lr=1: unknown key; did you mean train.lr?");
  EXPECT_EQ(override_refusal("train=1"),
            "command line: train=1: unknown key; known keys: precision, backend, threads, products, resume");
  EXPECT_EQ(override_refusal("train.lr"), "command line: train.lr: expected section.key=value");
  EXPECT_EQ(override_refusal("=1"), "command line: =1: expected section.key=value");
  EXPECT_EQ(override_refusal(""), "command line: : expected section.key=value");
  EXPECT_TRUE(contains(override_refusal("model.gate=non"), "did you mean \"none\"?"));
  EXPECT_TRUE(contains(override_refusal("data.path=\xFF"), "not UTF-8"));
  EXPECT_TRUE(contains(override_refusal("train.lr=0.1\ntrain.steps=3"), "expected a number"));
}

TEST(ToToml, GivesEveryKey) {
  const std::string text = to_toml(with({}));
  for (const ConfigField& field : run_config_fields()) {
    const std::string key = field.name.substr(field.name.rfind('.') + 1);
    EXPECT_TRUE(contains("\n" + text, "\n" + key + " = ")) << field.name;
  }
}

TEST(ToToml, RoundTripsValuesThatAreHardToWrite) {
  RunConfig config = with({});
  config.data.path = "a \"quoted\\path\"\n\t\x01\x7F \xC3\xA9 # no comment";
  config.data.val_fraction = 0.1 + 0.2;
  config.train.lr = 0.1f;
  config.train.epsilon = 1.17549435e-38f;
  config.train.weight_decay = 16777216.0f;
  config.train.min_lr_ratio = 0;
  config.model.rope_theta = 1e30f;
  config.model.gate_bias_init = -0.0f;
  config.train.seed = 9223372036854775807u;
  config.model.packed_qkv = false;
  EXPECT_EQ(parse(to_toml(config)), config) << to_toml(config);
}

TEST(ToToml, RoundTripsEveryChoiceOfEveryField) {
  for (const ConfigField& field : run_config_fields()) {
    for (const std::string& word : field.choices) {
      const RunConfig config = with({field.name + "=" + word});
      EXPECT_TRUE(contains(to_toml(config), " = \"" + word + "\"  #")) << field.name;
      EXPECT_EQ(parse(to_toml(config)), config) << field.name << " " << word;
    }
  }
}

TEST(Schema, NamesAreUniqueAndDocumented) {
  std::set<std::string> names;
  for (const ConfigField& field : run_config_fields()) {
    EXPECT_TRUE(names.insert(field.name).second) << field.name;
    EXPECT_FALSE(field.doc.empty()) << field.name;
    EXPECT_FALSE(field.expected.empty()) << field.name;
    EXPECT_EQ(find_config_field(field.name), &field);
  }
  EXPECT_EQ(find_config_field("train"), nullptr);
}

TEST(ConfigFiles, AreCompleteAndRoundTrip) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(QUAVER_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".toml") continue;
    const RunConfig config = load_run_config(entry.path().string());
    EXPECT_EQ(parse(to_toml(config)), config) << entry.path();
    EXPECT_GE(config.model.vocab, kByteVocab) << entry.path();
    EXPECT_EQ(config.run.dir, "runs/" + entry.path().stem().string());
    ++files;
  }
  EXPECT_GE(files, 5);
}

TEST(ConfigFiles, HaveTheSizesTheirNamesSay) {
  const auto parameters = [](const std::string& name) {
    return static_cast<double>(
        parameter_count(load_run_config(QUAVER_SOURCE_DIR "/configs/" + name + ".toml").model));
  };
  EXPECT_NEAR(parameters("gated-124m"), 124e6, 18e6);  // the name is that of the class of models
  EXPECT_NEAR(parameters("gated-350m"), 350e6, 35e6);
  EXPECT_NEAR(parameters("gated-1b"), 1e9, 0.25e9);
}

TEST(LoadRunConfig, NamesAMissingFile) {
  const TemporaryFolder folder;
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { load_run_config(folder.path("x.toml")); }),
                       "x.toml: cannot open"));
}

TEST(LoadRunConfig, NamesTheFileInErrors) {
  const TemporaryFolder folder;
  const std::string path = folder.write("x.toml", "[train]\nlr = 3");
  EXPECT_TRUE(
      error_message(ErrorKind::usage, [&] { load_run_config(path); }).starts_with(path + ":2:6: train.lr: "));
}

}  // namespace
}  // namespace quaver
