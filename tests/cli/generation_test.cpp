/// sample, eval --choices and serve, of runs and of Hugging Face folders.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "program.h"
#include "serve/http_client.h"
#include "support/child_process.h"
#include "support/errors.h"
#include "train/training_support.h"

namespace quaver {
namespace {

using nlohmann::json;

class GenerationProgramTest : public testing::Test {
 protected:
  void SetUp() override {
    write_text(folder);
    const ProgramResult trained =
        run_program({"train", std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml",
                     "data.path=" + folder.path("text"), "run.dir=" + run, "data.val_fraction=0.2",
                     "train.steps=3", "precision=bf16", "model.qk_norm=pre_rope"});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
    const ProgramResult exported = run_program({"export", run, "--output", hf});
    ASSERT_EQ(exported.exit_code, 0) << exported.err;
  }
  std::string questions() const {
    return folder.write(
        "q.jsonl",
        "{\"context\": \"line 1 of doc\", \"choices\": [\"ument\", \"zzzzzzz\"], \"label\": 0}\n"
        "{\"context\": \"the quick\", \"choices\": [\"@@@@@@@\", \" brown\"], \"label\": 1}\n"
        "{\"context\": \"the quick\", \"choices\": [\"@@@@@@@\", \" brown\"], \"label\": 0}\n");
  }

  TemporaryFolder folder;
  const std::string run = folder.path("run"), hf = folder.path("hf");
};

TEST_F(GenerationProgramTest, PromptsAreContinuedTogetherAndPrintedInOrder) {
  const std::vector<std::string> options = {
      "--tokens", "12", "--temperature",        "0.9", "--top-p", "0.95",
      "--seed",   "4",  "--repetition-penalty", "1.1"};
  const auto sample = [&](const std::string& of, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"sample", of});
    arguments.insert(arguments.end(), options.begin(), options.end());
    const ProgramResult result = run_program(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  const std::string first = sample(run, {"--prompt", "line"}),
                    second = sample(run, {"--prompt", "the quick"});
  EXPECT_EQ(sample(run, {"--prompt", "line", "--prompt", "the quick"}), first + "\n" + second);
  const std::string file = folder.write("prompts", "line\n\nthe quick\n");
  EXPECT_EQ(sample(run, {"--prompt-file", file, "--batch", "1"}), first + "\n" + second);
  const std::string lines = folder.write("prompts.jsonl", "\"line\"\n{\"prompt\": \"the quick\"}\n");
  EXPECT_EQ(sample(run, {"--prompt-file", lines}), first + "\n" + second);
  EXPECT_EQ(sample(hf, {"--prompt", "line", "--prompt", "the quick"}), first + "\n" + second)
      << "the exported folder is the same model";
  const std::string checkpoint = run + "/checkpoints/step-00000003";
  EXPECT_EQ(sample(checkpoint, {"--prompt", "line"}), first);
  const std::string objects =
      sample(run, {"--prompt", "line", "--prompt", "the quick", "--json", "--stop", "e"});
  const json object = json::parse(objects.substr(0, objects.find('\n')));
  EXPECT_EQ(object.at("prompt"), "line");
  EXPECT_FALSE(contains(object.at("text").get<std::string>(), "e"));
  EXPECT_EQ(run_program({"sample", run, "--top-p", "2"}).exit_code, 2);
  EXPECT_EQ(run_program({"sample", run, "--stop", ""}).exit_code, 2);
  EXPECT_EQ(run_program({"sample", run, "--prompt-file", folder.write("bad.jsonl", "5\n")}).exit_code, 3);
}

TEST_F(GenerationProgramTest, QuestionsAreCounted) {
  const json result = json::parse(run_program({"eval", run, "--choices", questions(), "--json"}).out);
  EXPECT_EQ(result.at("questions"), 3);
  // Two of the three labels agree with each other whatever the model thinks.
  EXPECT_TRUE(result.at("acc") == 1.0 / 3 || result.at("acc") == 2.0 / 3) << result;
  EXPECT_EQ(json::parse(run_program({"eval", hf, "--choices", questions(), "--json"}).out).at("acc"),
            result.at("acc"));
  const ProgramResult limited = run_program({"eval", run, "--choices", questions(), "--limit", "1"});
  EXPECT_TRUE(contains(limited.out, "of 1: the likeliest per token")) << limited.out;
  EXPECT_EQ(run_program({"eval", run, "--choices", folder.write("bad", "nothing")}).exit_code, 3);
}

TEST_F(GenerationProgramTest, AHuggingFaceFolderIsEvaluatedInPlace) {
  const auto loss = [&](const std::string& of) {
    const ProgramResult result =
        run_program({"eval", of, "data.path=" + folder.path("text"), "data.val_fraction=0.2",
                     "data.piece_bytes=1024", "train.batch=4", "train.eval_batches=0", "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return json::parse(result.out).at("val_loss");
  };
  EXPECT_EQ(loss(hf), loss(run));
}

TEST_F(GenerationProgramTest, ServesUntilSigterm) {
  const std::string out = folder.path("address");
  ChildProcess server({QUAVER_PROGRAM, "serve", hf, "--port", "0", "--json"}, out);
  for (int i = 0;
       i < 600 && server.running() && (!std::filesystem::exists(out) || !contains(read_file(out), "}")); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (contains(read_file(out), "no HTTP library")) GTEST_SKIP();
  const json address = json::parse(read_file(out));
  EXPECT_EQ(address.at("model"), "hf");
  const HttpResponse response =
      http_post(address.at("port"), R"({"prompt": "line", "max_tokens": 5, "model": "hf"})");
  EXPECT_EQ(response.status, 200) << response.body;
  EXPECT_EQ(json::parse(response.body).at("usage").at("prompt_tokens"), 5);
  server.signal(SIGTERM);
  EXPECT_EQ(server.wait(), 0);
}

TEST_F(GenerationProgramTest, ServeChecksItsOptions) {
  EXPECT_EQ(run_program({"serve", run, "--max-batch", "0"}).exit_code, 2);
  EXPECT_EQ(run_program({"serve", run, "--port", "70000"}).exit_code, 2);
  EXPECT_EQ(run_program({"serve", folder.path("text")}).exit_code, 3);
}

}  // namespace
}  // namespace quaver
