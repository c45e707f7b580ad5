#include "program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>

#include "support/errors.h"
#include "train/training_support.h"

namespace quaver {
namespace {

using nlohmann::json;

class ProgramTest : public testing::Test {
 protected:
  ProgramTest() { write_text(folder); }

  /// `quaver train configs/micro.toml` for a few steps on the text of this test, with more arguments.
  ProgramResult train(std::vector<std::string> more = {}, const std::string& prelude = "") const {
    std::vector<std::string> arguments = {"train",
                                          std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml",
                                          "data.path=" + folder.path("text"),
                                          "run.dir=" + run,
                                          "data.val_fraction=0.2",
                                          "train.steps=6",
                                          "train.save_every=3",
                                          "train.eval_every=3"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments, prelude);
  }

  void expect_error(const ProgramResult& result, int exit_code, const std::vector<std::string>& parts) const {
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_TRUE(contains(result.err, "quaver: error: ")) << result.err;
    for (const std::string& part : parts)
      EXPECT_TRUE(contains(result.err, part)) << part << " in: " << result.err;
  }

  TemporaryFolder folder;
  const std::string run = folder.path("run");
};

std::string last_line(const std::string& text) {
  const std::size_t end = text.find_last_not_of('\n');
  return text.substr(text.rfind('\n', end) + 1, end - text.rfind('\n', end));
}

TEST_F(ProgramTest, CommandsAreChecked) {
  expect_error(run_program({}), 2, {"no command given", "--help"});
  expect_error(run_program({"trian"}), 2,
               {"unknown command \"trian\"", "did you mean \"train\"?", "inspect"});
  expect_error(run_program({"bench"}), 2, {"--help"});
  expect_error(run_program({"eval"}), 2, {"run"});
  expect_error(run_program({"eval", run, "--jsonn"}), 2, {"--jsonn"});
  expect_error(run_program({"sample", run, "--tokens", "-1"}), 2, {"--tokens"});
  expect_error(run_program({"sample", run, "--temperature", "warm"}), 2, {"--temperature"});
}

TEST_F(ProgramTest, HelpIsNoError) {
  const ProgramResult result = run_program({"--help"});
  EXPECT_EQ(result.exit_code, 0);
  for (const char* command : {"train", "eval", "sample", "inspect", "bench"})
    EXPECT_TRUE(contains(result.out, command));
}

TEST_F(ProgramTest, TheDoctorSaysWhatThereIsAndWhatToUse) {
  const ProgramResult result = run_program({"doctor", "--json"}, "export QUAVER_ISA=baseline");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json facts = json::parse(result.out);
  ASSERT_EQ(facts.at("backends").size(), 3u);
  const json& cpu = facts.at("backends").at(1);
  EXPECT_EQ(cpu.at("backend"), "cpu");
  EXPECT_EQ(cpu.at("usable"), true);
  EXPECT_EQ(cpu.at("devices").at(0).at("details").at("instruction-set level"), "baseline");
  EXPECT_EQ(cpu.at("devices").at(0).at("types").at("bf16").at("native"), false);
  const json& cuda = facts.at("backends").at(2);
  EXPECT_EQ(cuda.at("usable"), cuda.at("missing") == "");
  EXPECT_EQ(facts.at("recommended").at("backend"), cuda.at("usable") == true ? "cuda" : "cpu");
  const std::string text = run_program({"doctor"}).out;
  for (const char* part :
       {"instruction-set level", "matrix unit", "threads", "memory", "e4m3", "cuda  ", "train here with"})
    EXPECT_TRUE(contains(text, part)) << part << " in: " << text;
  expect_error(run_program({"doctor", "please"}), 2, {"please"});
}

TEST_F(ProgramTest, InspectSaysWhyAProductDidNotRunInFp8) {
  ASSERT_EQ(train({"fp8.lm_head=false", "--strict-fp8"}).exit_code, 0);
  const json inspected = json::parse(run_program({"inspect", run, "--json"}).out);
  const json& head = inspected.at("without_fp8_state").at(0);
  EXPECT_EQ(head.at("name"), "lm_head");
  for (const char* gemm : {"fprop", "dgrad", "wgrad"})
    EXPECT_EQ(head.at(gemm).at("why_not_fp8"), "fp8.lm_head = false");
  EXPECT_FALSE(inspected.at("modules").at(0).at("fprop").contains("why_not_fp8"));
  EXPECT_TRUE(contains(run_program({"inspect", run}).out, "not: fp8.lm_head = false"));
}

TEST_F(ProgramTest, TheMeasuredChoiceIsPrintedAndStored) {
  const ProgramResult trained = train({"fp8.auto=true", "--strict-fp8"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  EXPECT_TRUE(contains(trained.err, "fp8.auto | 256 x 32 -> 257 | lm_head | fprop ")) << trained.err;
  EXPECT_TRUE(contains(read_file(run + "/config.toml"), "\nauto = false"));
  EXPECT_EQ(run_program({"eval", run}).exit_code, 0);
}

TEST_F(ProgramTest, StrictFp8NeedsFp8) {
  expect_error(train({"precision=bf16", "--strict-fp8"}), 2, {"--strict-fp8", "bf16"});
}

TEST_F(ProgramTest, ConfigurationsAreChecked) {
  expect_error(train({"train.stepz=3"}), 2, {"train.stepz", "train.steps"});
  expect_error(train({"train.steps=many"}), 2, {"train.steps", "expected", "many"});
  expect_error(train({"train.lr=-1"}), 2, {"train.lr", "expected", "-1"});
  expect_error(train({"model.kv_heads=3"}), 2, {"model.kv_heads"});
  expect_error(train({"model.vocab=100"}), 2, {"model.vocab", "257"});
  expect_error(train({"backend=cuda"}), 2, {"CUDA"});
  expect_error(train({"backend=tpu"}), 2, {"backend", "tpu"});
  EXPECT_FALSE(std::filesystem::exists(run));
}

TEST_F(ProgramTest, DataIsChecked) {
  expect_error(run_program({"train", folder.path("none.toml")}), 3, {"none.toml"});
  expect_error(train({"data.path=" + folder.path("none")}), 3, {"none"});
  std::filesystem::create_directory(folder.path("empty"));
  expect_error(train({"data.path=" + folder.path("empty")}), 3, {"empty"});
  expect_error(train({"data.path=" + folder.write("short.txt", "few bytes")}), 3, {"short.txt"});
  EXPECT_FALSE(std::filesystem::exists(run));
  expect_error(run_program({"eval", run}), 3, {"not a run folder"});
  expect_error(run_program({"sample", folder.path("text")}), 3, {"not a run folder"});
  expect_error(run_program({"inspect", run}), 3, {"not a run folder"});
}

TEST_F(ProgramTest, TrainsEvaluatesSamplesAndInspects) {
  const ProgramResult trained = train({"--json"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const json result = json::parse(trained.out);
  EXPECT_EQ(result.at("steps"), 6);
  EXPECT_EQ(result.at("fp8_modules_all_gemms"), result.at("linear_modules"));
  EXPECT_GT(result.at("peak_process_bytes"), result.at("peak_tensor_bytes"));

  const json evaluated = json::parse(run_program({"eval", run, "--json"}).out);
  EXPECT_EQ(evaluated.at("val_loss"), result.at("val_loss"));
  EXPECT_EQ(evaluated.at("val_bpb"), result.at("val_bpb"));
  EXPECT_EQ(evaluated.at("step"), 6);
  EXPECT_EQ(json::parse(run_program({"eval", run, "threads=3", "--json"}).out), evaluated);
  EXPECT_TRUE(contains(run_program({"eval", run}).out, "bits per byte"));

  const json probed = json::parse(run_program({"probe", run, "--json"}).out);
  EXPECT_EQ(probed.at("step"), 6);
  EXPECT_GE(probed.at("tokens"), evaluated.at("tokens"));  // the last window may be filled up
  ASSERT_EQ(probed.at("blocks").size(), 2u);
  EXPECT_NEAR(probed.at("blocks").at(0).at("gate_mean"), 0.5, 0.1);  // a few steps after its start at 0.5
  EXPECT_TRUE(contains(run_program({"probe", run}).out, "gate mean"));

  const json inspected = json::parse(run_program({"inspect", run, "--json"}).out);
  EXPECT_EQ(inspected.at("count"), 11);
  ASSERT_EQ(inspected.at("modules").size(), 11u);
  for (const json& module : inspected.at("modules")) {
    EXPECT_EQ(module.at("fprop").at("types"), "e4m3 x e4m3 -> bf16");
    EXPECT_EQ(module.at("dgrad").at("types"), "e5m2 x e4m3 -> bf16");
    EXPECT_EQ(module.at("wgrad").at("types"), "e5m2 x e4m3 -> f32");
    EXPECT_EQ(module.at("wgrad").at("fp8_runs"), 6);
    EXPECT_TRUE(contains(module.at("wgrad").at("kernel"), "e5m2, widened to bf16 while packing")) << module;
    EXPECT_EQ(module.at("wgrad").at("other_runs"), 0);
    EXPECT_GT(module.at("weight").at("last_amax"), 0);
    EXPECT_NE(module.at("grad_output").at("scale"), 1);
  }
  EXPECT_EQ(last_line(run_program({"inspect", run}).out), "11 modules with FP8 state");
}

TEST_F(ProgramTest, InspectHealthGivesAdviceWithNumbers) {
  // A margin of -8 makes every scale 2^8 times too large: most numbers saturate.
  ASSERT_EQ(train({"fp8.margin=-8", "fp8.histogram_every=1", "train.nonfinite=skip"}).exit_code, 0);
  const json sick = json::parse(run_program({"inspect", run, "--health", "--json"}).out);
  EXPECT_GT(sick.at("tensors"), 20);
  bool found = false;
  for (const json& advice : sick.at("advice"))
    found = found || (advice.at("rule") == "saturates" && advice.at("tensor") == "lm_head.input");
  EXPECT_TRUE(found) << sick.dump();
  const std::string text = run_program({"inspect", run, "--health"}).out;
  EXPECT_TRUE(contains(text, "saturates      lm_head.input: ")) << text;
  EXPECT_TRUE(contains(last_line(text), "tensors cast to FP8, ")) << text;
  const json modules = json::parse(run_program({"inspect", run, "--json"}).out).at("modules");
  EXPECT_EQ(modules.at(0).at("input").at("exponents").at("counts").size(), 32u);
}

TEST_F(ProgramTest, InspectWhatIfComparesCastsWithoutCastingAgain) {
  ASSERT_EQ(train({"fp8.histogram_every=1"}).exit_code, 0);
  const json result =
      json::parse(run_program({"inspect", run, "--what-if", "e5m2,margin=1,mxfp8", "--json"}).out);
  EXPECT_EQ(result.at("uncounted"), 0);
  EXPECT_GT(result.at("tensors").size(), 20u);
  for (const json& tensor : result.at("tensors")) {
    const json& casts = tensor.at("casts");
    ASSERT_EQ(casts.size(), 4u) << tensor;
    EXPECT_EQ(casts.at(0).at("cast"), "now");
    EXPECT_EQ(casts.at(2).at("scale").get<double>(), casts.at(0).at("scale").get<double>() / 2) << "margin 1";
    EXPECT_TRUE(casts.at(3).contains("underflowed_if_mixed"));
  }
  EXPECT_TRUE(contains(run_program({"inspect", run, "--what-if", "mxfp8"}).out, "mixed at random"));
  expect_error(run_program({"inspect", run, "--what-if", "fp6"}), 2, {"--what-if", "fp6", "mxfp8"});
}

TEST_F(ProgramTest, BenchMemoryShowsWhatRecomputationSaves) {
  const ProgramResult result =
      run_program({"bench", "memory", std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json memory = json::parse(result.out).at("recompute");
  const auto activations = [&](const char* kind) { return memory.at(kind).at("activations").get<double>(); };
  EXPECT_LT(activations("block"), activations("attention"));
  EXPECT_LT(activations("attention"), activations("none"));
  EXPECT_LT(memory.at("block").at("peak"), memory.at("none").at("peak"));
}

TEST_F(ProgramTest, SamplesAreAFunctionOfTheSeed) {
  ASSERT_EQ(train().exit_code, 0);
  const auto sample = [&](const std::string& seed) {
    return run_program({"sample", run, "--prompt", "line", "--tokens", "30", "--seed", seed}).out;
  };
  const std::string text = sample("1");
  EXPECT_TRUE(text.starts_with("line"));
  EXPECT_EQ(sample("1"), text);
  EXPECT_NE(sample("2"), text);
  const std::vector<std::string> greedy = {"sample",        run, "--prompt", "line", "--tokens", "100",
                                           "--temperature", "0", "--json"};
  const json result = json::parse(run_program(greedy).out);
  EXPECT_EQ(result.at("prompt"), "line");
  EXPECT_LE(result.at("tokens"), 100);
  EXPECT_EQ(json::parse(run_program(greedy).out), result);
}

TEST_F(ProgramTest, ProgressAndResultsHaveTheirForms) {
  const ProgramResult result = train({"train.log_every=2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::regex line(
      R"(step 2/6 33\.3% \| loss \d+\.\d{4} \| bpb \d+\.\d\d \| \|g\| \d+\.\d\d \| lr \d\.\de-\d \| \S+ tok/s \| mfu \d+% \| )"
      R"(fp8 sat \S+ uf \S+ \| \d+ ms \| eta \d+s\n)");
  EXPECT_TRUE(std::regex_search(result.err, line)) << result.err;
  EXPECT_FALSE(contains(result.err, "step 3/6 50.0%"));
  EXPECT_FALSE(contains(result.err, "\r"));
  EXPECT_TRUE(contains(result.err, "step 3/6 | validation loss "));
  for (const char* part : {"train loss", "validation loss", "nats per token", "bits per byte", "tokens/s",
                           "11 of 11 Linear modules, all three GEMMs", "peak memory", "run folder"}) {
    EXPECT_TRUE(contains(result.out, part)) << part;
  }
}

TEST_F(ProgramTest, ARunThatIsNotFp8SaysSo) {
  const ProgramResult result = train({"precision=bf16"});
  EXPECT_TRUE(contains(result.out, "0 of 11 Linear modules")) << result.out;
  EXPECT_FALSE(contains(result.err, "fp8 sat"));
  const std::string inspected = run_program({"inspect", run}).out;
  EXPECT_TRUE(contains(inspected, "bf16 x bf16 -> bf16"));
  EXPECT_EQ(last_line(inspected), "0 modules with FP8 state");
}

TEST_F(ProgramTest, TheReferenceBackendTrains) {
  const ProgramResult result =
      train({"backend=reference", "train.steps=2", "train.batch=1", "train.eval_batches=1"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(contains(result.out, "11 of 11 Linear modules, all three GEMMs"));
}

TEST_F(ProgramTest, SlowTheSameCommandGoesOnWithARun) {
  ASSERT_EQ(train({"train.steps=3"}).exit_code, 0);
  const ProgramResult result = train();
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(contains(result.err, "resuming after step 3 from " + run)) << result.err;
  EXPECT_TRUE(std::regex_search(result.err,
                                std::regex(R"(step 6/6 \| saved \S+ \S+ in \d+ ms; training stood still)")))
      << result.err;
  expect_error(train({"train.lr=0.5"}), 2, {"run.dir", "train.lr = ", ", not 0.5", "Hint"});
  expect_error(train({"resume=none"}), 2, {"run.dir", "already holds a run", "Hint"});
  const ProgramResult branch =
      train({"run.dir=" + folder.path("branch"), "resume=" + run + "/checkpoints/step-00000003"});
  EXPECT_EQ(branch.exit_code, 0) << branch.err;
  for (const char* name : {"/model.safetensors", "/fp8_state.safetensors"})
    EXPECT_TRUE(read_file(folder.path("branch") + name) == read_file(run + name)) << name;
}

TEST_F(ProgramTest, VerifySaysWhatIsDamaged) {
  ASSERT_EQ(train().exit_code, 0);
  const ProgramResult whole = run_program({"verify", run});
  EXPECT_EQ(whole.exit_code, 0) << whole.err;
  EXPECT_EQ(last_line(whole.out), "0 of 5 parts are damaged");
  const std::string damaged = run + "/checkpoints/step-00000003/config.toml";
  write_file_atomically(damaged, read_file(damaged) + " ");
  const ProgramResult result = run_program({"verify", run, "--json"});
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_EQ(json::parse(result.out).at("damaged"), 1);
  expect_error(run_program({"verify", folder.path("text")}), 3, {"not a run folder"});
}

TEST_F(ProgramTest, NumbersThatAreNotFiniteEndTheRun) {
  const ProgramResult result = train({"model.init_std=3e38"});
  EXPECT_EQ(result.exit_code, 4) << result.err;
  EXPECT_TRUE(contains(result.err, "quaver: error: step 1: loss ")) << result.err;
  EXPECT_TRUE(contains(result.err, "Hint: ")) << result.err;
  EXPECT_FALSE(std::filesystem::exists(run + "/model.safetensors"));
}

TEST_F(ProgramTest, AFullDiskForMetricsEndsTheRun) {
  std::filesystem::create_directory(run);
  std::filesystem::create_symlink("/dev/full", run + "/metrics.jsonl");
  const ProgramResult result = train();
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_TRUE(contains(result.err, "metrics.jsonl: cannot append: No space left on device")) << result.err;
}

TEST_F(ProgramTest, ADiskThatFillsUpKeepsTheLastSavedModel) {
  // Files may grow to 192 blocks of 512 bytes: the tokens and the metrics fit, the model does not.
  const ProgramResult result = train({}, "trap '' XFSZ; ulimit -f 192");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_TRUE(contains(result.err, "model.safetensors")) << result.err;
  EXPECT_TRUE(contains(result.err, "cannot write")) << result.err;
  EXPECT_FALSE(std::filesystem::exists(run + "/model.safetensors"));
  EXPECT_FALSE(std::filesystem::exists(run + "/model.safetensors.next.tmp"));
}

TEST_F(ProgramTest, AResultThatCannotBePrintedIsAFailure) {
  ASSERT_EQ(train().exit_code, 0);
  const ProgramResult result = run_program({"inspect", run}, "exec > /dev/full");
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_TRUE(contains(result.err, "quaver: error: ")) << result.err;
}

/// Shell commands that send a signal to the program that they precede, once it has written metrics.
std::string signal_after_first_step(const std::string& signal, const TemporaryFolder& folder) {
  return "(for i in $(seq 600); do sleep 0.1; test -s " + shell_quoted(folder.path("run/metrics.jsonl")) +
         " && break; done; kill -" + signal + " $(cat " + shell_quoted(folder.path("pid")) +
         ")) & sh -c 'echo $PPID' > " + shell_quoted(folder.path("pid"));
}

TEST_F(ProgramTest, ASignalStopsAndSaves) {
  for (const std::string signal : {"INT", "TERM"}) {
    const ProgramResult result =
        train({"train.steps=1000000", "train.log_every=1"}, signal_after_first_step(signal, folder));
    EXPECT_EQ(result.exit_code, 75) << result.err;
    EXPECT_TRUE(contains(result.out, "stopped")) << result.out;
    EXPECT_TRUE(contains(result.err, "| saved ")) << result.err;
    EXPECT_EQ(run_program({"eval", run}).exit_code, 0);
    std::filesystem::remove_all(run);
  }
}

TEST_F(ProgramTest, ASignalAsksForASave) {
  // Saved by the request alone: a run of many steps, which a second signal ends.
  const std::string later = "(for i in $(seq 600); do sleep 0.1; test -e " +
                            shell_quoted(run + "/model.safetensors") + " && break; done; kill -TERM $(cat " +
                            shell_quoted(folder.path("pid")) + ")) & ";
  const ProgramResult result = train({"train.steps=1000000", "train.save_every=0", "train.log_every=1"},
                                     later + signal_after_first_step("USR1", folder));
  EXPECT_EQ(result.exit_code, 75) << result.err;
  const std::size_t first = result.err.find("| saved ");
  ASSERT_NE(first, std::string::npos) << result.err;
  EXPECT_NE(result.err.find("| saved ", first + 1), std::string::npos) << result.err;
}

TEST_F(ProgramTest, BenchCrossoverHasARowForEveryCase) {
  const std::string config = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml";
  const ProgramResult result =
      run_program({"bench", "crossover", config, "--set", "threads=1", "--micro-batch", "1", "2", "--context",
                   "16", "32", "--steps", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json rows = json::parse(result.out);
  ASSERT_EQ(rows.size(), 4u);
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(rows[i].at("model"), "micro");
    EXPECT_EQ(rows[i].at("context"), i < 2 ? 16 : 32);
    EXPECT_EQ(rows[i].at("micro_batch"), i % 2 ? 2 : 1);
    EXPECT_GT(rows[i].at("fp8_over_bf16"), 0);
    EXPECT_GT(rows[i].at("arena_peak_bytes"), 0);
  }
}

TEST_F(ProgramTest, BenchGemmTimesTheProductsOfEveryShape) {
  const std::string config = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml";
  const ProgramResult result = run_program({"bench", "gemm", config, "--backend", "cpu", "--micro-batch", "1",
                                            "--context", "16", "--square", "32", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json rows = json::parse(result.out);
  ASSERT_GE(rows.size(), 2u);
  EXPECT_EQ(rows.back().at("linear"), "square");
  for (const json& row : rows) {
    for (const char* product : {"fprop", "dgrad", "wgrad"}) {
      const json& times = row.at(product);
      EXPECT_GT(times.at("fp8_ms"), 0);
      EXPECT_GT(times.at("bf16_flops"), 0);
    }
    EXPECT_GT(row.at("with_casts").at("fp8_ms"), row.at("fprop").at("fp8_ms"));
  }
}

TEST_F(ProgramTest, BenchStepComparesFp8WithBf16) {
  const std::string config = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml";
  const ProgramResult result = run_program(
      {"bench", "step", config, "--micro-batch", "1", "--context", "32", "--steps", "2", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json numbers = json::parse(result.out);
  EXPECT_EQ(numbers.at("micro_batch"), 1);
  EXPECT_EQ(numbers.at("context"), 32);
  EXPECT_EQ(numbers.at("flops_per_token"), 6 * 28704 + 6 * 32 * 32 * 2);
  for (const char* precision : {"fp8", "bf16"}) {
    EXPECT_GT(numbers.at(precision).at("tokens_per_s"), 0);
    EXPECT_GT(numbers.at(precision).at("mfu"), 0);
    EXPECT_LT(numbers.at(precision).at("mfu"), 1.5);
  }
  EXPECT_GT(numbers.at("fp8_over_bf16"), 0);
}

TEST_F(ProgramTest, BenchProfileNamesTheOperationsOfAStep) {
  const std::string config = std::string(QUAVER_SOURCE_DIR) + "/configs/micro.toml";
  const ProgramResult result = run_program({"bench", "profile", config, "threads=1", "--micro-batch", "1",
                                            "--context", "32", "--steps", "2", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json numbers = json::parse(result.out);
  EXPECT_EQ(numbers.at("micro_batch"), 1);
  std::vector<std::string> names;
  for (const json& operation : numbers.at("operations")) names.push_back(operation.at("operation"));
  for (const char* name : {"gemm fprop e4m3", "attention backward", "adamw", "cross_entropy, e5m2"})
    EXPECT_NE(std::find(names.begin(), names.end(), name), names.end()) << name;
}

}  // namespace
}  // namespace quaver
