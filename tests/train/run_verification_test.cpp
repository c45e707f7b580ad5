#include "train/run_verification.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "base/files.h"
#include "formats/checkpoint_store.h"
#include "formats/safetensors.h"
#include "support/errors.h"
#include "train/run_folder.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

class RunVerificationTest : public testing::Test {
 protected:
  RunVerificationTest() {
    write_text(folder);
    config = micro_config(folder);
    config.train.save_every = 3;
    TrainingObserver silent;
    run_training(config, silent);
  }

  std::string checkpoint(int step) const {
    return fmt::format("{}/step-{:08}", checkpoints_path(config.run.dir), step);
  }

  RunVerification verify() {
    PosixFileSystem files;
    return verify_run(files, config.run.dir);
  }

  /// The one damaged part's reason.
  std::string damage() {
    std::string reason;
    for (const VerifiedPart& part : verify().parts) {
      if (!part.damaged) continue;
      EXPECT_EQ(reason, "") << "more than one";
      reason = part.path + ": " + part.found;
    }
    return reason;
  }

  /// Saves the checkpoint of step 6 again with one file changed: its manifest is right, its content is not. Leaves the
  /// run's own model as it was.
  void rewrite(const std::string& name, const std::function<std::string(std::string)>& change) {
    PosixFileSystem files;
    std::vector<std::string> contents;
    std::vector<CheckpointFile> views;
    const auto entries = verify_checkpoint(files, checkpoint(6)).files;
    for (const ManifestEntry& entry : entries) {
      contents.push_back(read_file(checkpoint(6) + "/" + entry.name));
      if (entry.name == name) contents.back() = change(contents.back());
    }
    for (std::size_t i = 0; i < entries.size(); ++i)
      views.push_back({entries[i].name, {std::as_bytes(std::span(contents[i]))}});
    CheckpointStore store(files, checkpoints_path(config.run.dir));
    store.save(6, views);
    store.keep_newest(2);
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(RunVerificationTest, AWholeRunIsWhole) {
  const RunVerification run = verify();
  EXPECT_EQ(run.damaged(), 0);
  ASSERT_EQ(run.parts.size(), 5u) << "configuration, two checkpoints, model, metrics";
  EXPECT_TRUE(contains(run.parts[1].found, "step 3, 5 files")) << run.parts[1].found;
  EXPECT_EQ(run.parts[3].found, "step 6");
  EXPECT_EQ(run.parts[4].found, "6 steps, up to 6");
  PosixFileSystem files;
  EXPECT_EQ(verify_run(files, checkpoint(3)).parts.size(), 1u);
  const std::string text = folder.path("text");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { verify_run(files, text); }), "not a run folder"));
}

TEST_F(RunVerificationTest, DamageIsNamed) {
  const std::string path = checkpoint(3) + "/optimizer.safetensors", bytes = read_file(path);
  std::string damaged = bytes;
  damaged[damaged.size() / 2] = static_cast<char>(damaged[damaged.size() / 2] ^ 4);
  write_file_atomically(path, damaged);
  EXPECT_TRUE(contains(damage(), "optimizer.safetensors: CRC32C"));
  fs::remove(path);
  EXPECT_TRUE(contains(damage(), "optimizer.safetensors"));
  write_file_atomically(path, bytes);
  EXPECT_EQ(damage(), "");
}

TEST_F(RunVerificationTest, WhatTheManifestCannotKnowIsChecked) {
  const std::string progress = read_file(checkpoint(6) + "/progress.json");
  rewrite("progress.json", [](const std::string&) { return "{}"; });
  EXPECT_TRUE(contains(damage(), "progress.json: damaged"));
  rewrite("progress.json", [&](const std::string&) { return progress; });
  rewrite("optimizer.safetensors", [](std::string bytes) {
    const float infinity = std::numeric_limits<float>::infinity();
    std::memcpy(bytes.data() + bytes.size() - sizeof infinity, &infinity, sizeof infinity);
    return bytes;
  });
  EXPECT_TRUE(contains(damage(), "] is inf"));
  rewrite("optimizer.safetensors",
          [&](const std::string&) { return read_file(checkpoint(3) + "/optimizer.safetensors"); });
  EXPECT_TRUE(contains(damage(), "optimizer.safetensors: of step 3, expected 6"));
  rewrite("optimizer.safetensors",
          [&](const std::string&) { return read_file(checkpoint(3) + "/model.safetensors"); });
  EXPECT_TRUE(contains(damage(), "arrays, expected"));
}

TEST_F(RunVerificationTest, ANanAmongMomentsInFewerBitsIsFound) {
  for (const StateFormat moments : {StateFormat::bf16, StateFormat::fp8}) {
    fs::remove_all(config.run.dir);
    config.optimizer.moments = moments;
    TrainingObserver silent;
    run_training(config, silent);
    EXPECT_EQ(verify().damaged(), 0);
    rewrite("optimizer.safetensors", [&](const std::string&) {
      Safetensors file = read_safetensors(checkpoint(6) + "/optimizer.safetensors");
      NamedArray& second = *std::find_if(file.arrays.begin(), file.arrays.end(), [](const NamedArray& array) {
        return array.name.starts_with("v.");
      });
      std::fill_n(second.bytes.begin(), size_of(second.dtype), std::byte{0xFF});  // a NaN of either type
      std::string bytes = safetensors_preamble(file.arrays, file.metadata);
      for (const NamedArray& array : file.arrays)
        bytes.append(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
      return bytes;
    });
    const std::string message = damage();
    EXPECT_TRUE(contains(message, "optimizer.safetensors: v.") && contains(message, "nan")) << message;
  }
}

TEST_F(RunVerificationTest, TheRunsOwnFilesAreChecked) {
  write_file_atomically(model_path(config.run.dir), "no safetensors");
  EXPECT_TRUE(contains(damage(), "model.safetensors"));
  fs::remove(model_path(config.run.dir));
  const std::string metrics = read_file(metrics_path(config.run.dir));
  write_file_atomically(metrics_path(config.run.dir), metrics + "{\"step\":2}\n");
  EXPECT_TRUE(contains(damage(), "metrics.jsonl:7: step 2 after step 6"));
  write_file_atomically(metrics_path(config.run.dir), metrics + "{}\n");
  EXPECT_TRUE(contains(damage(), "metrics.jsonl:7: not an object"));
}

TEST_F(RunVerificationTest, WhatACrashLeavesIsMentionedAndNoDamage) {
  fs::create_directory(checkpoint(9) + ".tmp");
  fs::rename(checkpoint(3), checkpoint(3) + ".damaged");
  write_file_atomically(metrics_path(config.run.dir),
                        read_file(metrics_path(config.run.dir)) + "{\"step\":7,\"lo");
  const RunVerification run = verify();
  EXPECT_EQ(run.damaged(), 0);
  std::string all;
  for (const VerifiedPart& part : run.parts) all += part.found + "\n";
  for (const char* part : {"unfinished", "set aside", "the last line is cut off"})
    EXPECT_TRUE(contains(all, part)) << all;
}

}  // namespace
}  // namespace quaver
