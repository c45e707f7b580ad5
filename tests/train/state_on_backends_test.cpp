/// Optimizer state in fewer bits, and smoothed inputs, on every backend: a checkpoint moves between them, and the next update has the
/// same bits.
#include <gtest/gtest.h>

#include "base/files.h"
#include "base/random.h"
#include "support/test_backends.h"
#include "train/checkpoint.h"
#include "train/fp8_policy.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

using F = StateFormat;
const std::vector<OptimizerConfig> kStates = {{.moments = F::bf16},
                                              {.moments = F::fp8},
                                              {.masters = F::bf16},
                                              {.moments = F::bf16, .masters = F::bf16},
                                              {.moments = F::fp8, .masters = F::bf16}};

std::string name_of_state(const OptimizerConfig& state) {
  return fmt::format("moments {}, masters {}", name_of(stored_dtype(state.moments)),
                     name_of(stored_dtype(state.masters)));
}

class StateOnBackends : public ::testing::TestWithParam<std::string> {
 protected:
  StateOnBackends() {
    write_text(folder);
    config = micro_config(folder);
    config.model.context = 8;  // the emulation is slow
    // Weights whose rows are whole blocks of moments, and others.
    config.model.ffn_width = 128;
    config.model.layers = 1;
  }

  std::unique_ptr<Trainer> trainer_on(const std::string& backend) {
    return std::make_unique<Trainer>(testing::make_test_backend(backend), config);
  }
  double train(Trainer& trainer, std::uint64_t batch) {
    const HostBatch one = training_batches(config).at(batch);
    return trainer.step(config.train.lr, std::span(&one, 1)).loss.mean();
  }
  /// Name and bytes of a checkpoint's files.
  static std::map<std::string, std::string> files_of(Trainer& trainer) {
    std::map<std::string, std::string> files;
    RunProgress progress;
    progress.step = trainer.steps();
    const Snapshot snapshot(trainer, progress);
    for (const CheckpointFile& file : snapshot.files()) {
      std::string& bytes = files[file.name];
      for (const auto& chunk : file.chunks)
        bytes.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
    }
    return files;
  }
  void restore(const std::map<std::string, std::string>& files, Trainer& trainer) {
    for (const auto& [name, bytes] : files) folder.write("checkpoint/" + name, bytes);
    restore_checkpoint(folder.path("checkpoint"), trainer);
  }
  /// An update with gradients that are the same on every backend.
  static void update(Trainer& trainer, std::uint64_t stream) {
    struct Gradients : ModuleVisitor {
      Gradients(Backend& b, std::uint64_t s) : backend(b), stream(s) {}
      void parameter(const std::string& name, Parameter& parameter) override {
        const Random random(stream, stable_hash(name));
        std::vector<float> values(static_cast<std::size_t>(parameter.value.elements()));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1e-2f * random.normal(i);
        backend.copy_from_host(values.data(), parameter.accumulated_gradient(backend));
      }
      Backend& backend;
      std::uint64_t stream;
    } gradients(trainer.backend(), stream);
    trainer.model().visit("", gradients);
    trainer.optimizer().step(1e-3f);
  }
  static void expect_equal(const std::map<std::string, std::string>& found,
                           const std::map<std::string, std::string>& expected, const std::string& where) {
    ASSERT_EQ(found.size(), expected.size());
    for (const auto& [name, bytes] : expected)
      EXPECT_TRUE(found.at(name) == bytes) << name << " differs: " << where;
  }

  TemporaryFolder folder;
  RunConfig config;
};
INSTANTIATE_TEST_SUITE_P(Backends, StateOnBackends, ::testing::ValuesIn(testing::test_backends()),
                         [](const auto& backend) { return std::string(backend.param); });

TEST_P(StateOnBackends, ACheckpointOfTheReferenceGoesOnWithTheSameBits) {
  for (const OptimizerConfig& state : kStates) {
    const std::string where = name_of_state(state);
    config.optimizer = state;
    const auto reference = trainer_on("reference");
    train(*reference, 0);
    const auto saved = files_of(*reference);
    const auto other = trainer_on(GetParam());
    restore(saved, *other);
    expect_equal(files_of(*other), saved, where + ", restored");
    for (const std::uint64_t stream : {1, 2}) {
      update(*reference, stream);
      update(*other, stream);
      expect_equal(files_of(*other), files_of(*reference), where + ", updated");
    }
    EXPECT_NE(files_of(*other).at("optimizer.safetensors"), saved.at("optimizer.safetensors"));
  }
}

TEST_P(StateOnBackends, SlowTrainAsOnTheReference) {
  for (const OptimizerConfig& state : kStates) {
    config.optimizer = state;
    const auto reference = trainer_on("reference"), other = trainer_on(GetParam());
    for (const std::uint64_t step : {0, 1}) {
      // Last bits of other sums become codes here and there.
      EXPECT_NEAR(train(*other, step), train(*reference, step), 0.02) << step << name_of_state(state);
    }
    EXPECT_NO_THROW(require_strict_fp8(other->model()));
  }
}

TEST_P(StateOnBackends, SlowSmoothedInputsTooTrainAndMove) {
  config.fp8.smooth_swiglu = true;
  for (const char* recipe : {"delayed", "current"}) {
    config.fp8.recipe = recipe;
    const auto reference = trainer_on("reference"), other = trainer_on(GetParam()),
               moved = trainer_on(GetParam());
    for (const std::uint64_t step : {0, 1})
      EXPECT_NEAR(train(*other, step), train(*reference, step), 0.02) << recipe << step;
    EXPECT_NO_THROW(require_strict_fp8(other->model()));
    const auto saved = files_of(*reference);
    restore(saved, *moved);
    expect_equal(files_of(*moved), saved, recipe);
    update(*moved, 1);
    update(*reference, 1);
    expect_equal(files_of(*moved), files_of(*reference), recipe);
    const auto loss_of = [&](Trainer& trainer) {
      return trainer.evaluate(validation_batches(config)).mean();
    };
    EXPECT_NEAR(loss_of(*moved), loss_of(*reference), 0.02) << "with the checkpoint's scales of channels";
  }
}

}  // namespace
}  // namespace quaver
