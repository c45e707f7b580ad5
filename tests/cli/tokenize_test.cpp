#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "program.h"
#include "support/errors.h"
#include "train/training_support.h"

namespace quaver {
namespace {

using nlohmann::json;

class TokenizeProgramTest : public testing::Test {
 protected:
  TokenizeProgramTest() { write_text(folder); }

  ProgramResult make_tokenizer() const {
    return run_program(
        {"tokenize", "train", "--vocab", "300", "--output", tokenizer, "--json", folder.path("text")});
  }
  ProgramResult train(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {
        "train",          std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml",
        "run.dir=" + run, "data.val_fraction=0.2",
        "train.steps=2",  "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }

  TemporaryFolder folder;
  const std::string tokenizer = folder.path("t.json"), shards = folder.path("shards"),
                    run = folder.path("run");
};

TEST_F(TokenizeProgramTest, AVocabularyShardsARunAndItsSample) {
  const ProgramResult made = make_tokenizer();
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_EQ(json::parse(made.out).at("vocab"), 300);
  const ProgramResult written = run_program({"tokenize", folder.path("text"), "--tokenizer", tokenizer,
                                             "--output", shards, "--val-fraction", "0.2", "--json"});
  ASSERT_EQ(written.exit_code, 0) << written.err;
  EXPECT_EQ(json::parse(written.out).at("documents"), 24);

  const ProgramResult trained =
      train({"data.path=" + shards, "data.tokenizer=" + tokenizer, "model.vocab=320"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const json result = json::parse(trained.out);
  // A token of this text has several bytes, and a model that knows nothing needs log2(320) bits for one.
  EXPECT_LT(result.at("val_bpb"), 6);
  EXPECT_GT(result.at("val_bpb"), 0.5);

  std::filesystem::remove(tokenizer);  // the run folder has a copy
  const ProgramResult evaluated = run_program({"eval", run, "--json"});
  ASSERT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_EQ(json::parse(evaluated.out).at("val_bpb"), result.at("val_bpb"));
  const ProgramResult sampled =
      run_program({"sample", run, "--prompt", "the quick", "--tokens", "12", "--temperature", "0", "--json"});
  ASSERT_EQ(sampled.exit_code, 0) << sampled.err;
  EXPECT_LE(json::parse(sampled.out).at("tokens"), 12);
}

TEST_F(TokenizeProgramTest, TextAndItsShardsEvaluateEqually) {
  ASSERT_EQ(make_tokenizer().exit_code, 0);
  ASSERT_EQ(run_program({"tokenize", folder.path("text"), "--tokenizer", tokenizer, "--output", shards,
                         "--val-fraction", "0.2"})
                .exit_code,
            0);
  const std::vector<std::string> common = {"data.tokenizer=" + tokenizer, "model.vocab=300"};
  ASSERT_EQ(train({common[0], common[1], "data.path=" + folder.path("text")}).exit_code, 0);
  const ProgramResult text = run_program({"eval", run, "--json"}),
                      sharded = run_program({"eval", run, "data.path=" + shards, "--json"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.out, sharded.out);
}

TEST_F(TokenizeProgramTest, UnknownTokenizersHaveNoBitsPerByteAndNoSamples) {
  ASSERT_EQ(
      run_program({"tokenize", folder.path("text"), "--tokenizer", "bytes", "--output", shards}).exit_code,
      0);
  const ProgramResult trained =
      train({"data.path=" + shards, "data.tokenizer=none", "data.document_mask=false"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  EXPECT_TRUE(json::parse(trained.out).at("val_bpb").is_null());
  EXPECT_TRUE(contains(trained.err, "bpb n/a")) << trained.err;
  const ProgramResult sampled = run_program({"sample", run});
  EXPECT_EQ(sampled.exit_code, 2);
  EXPECT_TRUE(contains(sampled.err, "data.tokenizer=PATH")) << sampled.err;
}

TEST_F(TokenizeProgramTest, MistakesAreExplained) {
  const auto expect_error = [](const ProgramResult& result, int exit_code, const std::string& part) {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_TRUE(contains(result.err, part)) << part << " in: " << result.err;
  };
  expect_error(run_program({"tokenize", folder.path("text")}), 2, "--tokenizer");
  expect_error(run_program({"tokenize", "train", folder.path("text"), "--output", tokenizer}), 2, "--vocab");
  expect_error(run_program({"tokenize", "train", folder.path("text"), "--output", tokenizer, "--vocab", "5"}),
               2, "[257, ");
  ASSERT_EQ(make_tokenizer().exit_code, 0);
  expect_error(train({"data.path=" + folder.path("text"), "data.tokenizer=" + tokenizer}), 2,
               "model.vocab=300");
  expect_error(train({"data.path=" + folder.path("text"), "data.tokenizer=" + folder.path("none.json")}), 3,
               "none.json: cannot open");
  EXPECT_FALSE(std::filesystem::exists(run));
}

}  // namespace
}  // namespace quaver
