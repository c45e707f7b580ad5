#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "program.h"
#include "support/errors.h"
#include "train/training_support.h"

namespace quaver {
namespace {

TEST(InteropProgramTest, SlowExportImportSampleEvalAndTrainOn) {
  const TemporaryFolder folder;
  write_text(folder);
  const std::string micro = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml", run = folder.path("run");
  const std::string out = folder.path("hf"), imported = folder.path("imported");
  const std::string data = "data.path=" + folder.path("text");
  ASSERT_EQ(run_program({"train", micro, data, "run.dir=" + run, "train.steps=2", "model.qk_norm=pre_rope",
                         "data.val_fraction=0.2"})
                .exit_code,
            0);

  const ProgramResult exported = run_program({"export", run, "--output", out, "--json"});
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_EQ(nlohmann::json::parse(exported.out)["architecture"], "Qwen3_5ForCausalLM");
  for (const char* file : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                           "tokenizer_config.json"}) {
    EXPECT_TRUE(std::filesystem::exists(out + "/" + file)) << file;
  }
  EXPECT_EQ(run_program({"export", run, "--output", out}).exit_code, 2);
  EXPECT_EQ(run_program({"export", folder.path("missing"), "--output", folder.path("x")}).exit_code, 3);

  const ProgramResult result =
      run_program({"import", out, "--output", imported, data, "data.val_fraction=0.2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "train.init=" + imported)) << result.out;
  EXPECT_EQ(run_program({"import", out, "--output", imported}).exit_code, 2);
  EXPECT_EQ(run_program({"import", folder.path("missing"), "--output", folder.path("x")}).exit_code, 3);

  // The same weights in the same precision: the same text and the same loss.
  const std::vector<std::string> sampling = {"precision=bf16", "--prompt", "line", "--tokens", "20"};
  const auto sample = [&](const std::string& of) {
    std::vector<std::string> arguments = {"sample", of};
    arguments.insert(arguments.end(), sampling.begin(), sampling.end());
    return run_program(arguments).out;
  };
  EXPECT_NE(sample(run), "");
  EXPECT_EQ(sample(imported), sample(run));
  const auto loss = [](const std::string& of) {
    return nlohmann::json::parse(run_program({"eval", of, "precision=bf16", "data.piece_bytes=1024",
                                              "train.batch=4", "train.eval_batches=0", "--json"})
                                     .out)["val_loss"];
  };
  EXPECT_EQ(loss(imported), loss(run));

  const ProgramResult trained =
      run_program({"train", imported + "/config.toml", "train.init=" + imported,
                   "run.dir=" + folder.path("next"), "precision=fp8", "train.steps=2"});
  EXPECT_EQ(trained.exit_code, 0) << trained.err;
}

TEST(InteropProgramTest, AModelWithoutAStockHomeIsRefusedByKey) {
  const TemporaryFolder folder;
  write_text(folder);
  const std::string micro = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml", run = folder.path("run");
  ASSERT_EQ(run_program({"train", micro, "data.path=" + folder.path("text"), "run.dir=" + run,
                         "train.steps=1", "data.val_fraction=0.2"})
                .exit_code,
            0);
  const ProgramResult result = run_program({"export", run, "--output", folder.path("hf")});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(contains(result.err, "model.qk_norm")) << result.err;
  EXPECT_FALSE(std::filesystem::exists(folder.path("hf")));
}

}  // namespace
}  // namespace quaver
