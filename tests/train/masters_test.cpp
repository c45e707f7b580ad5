/// Weights whose masters are BF16: where they stand, in a checkpoint, and in a run that is loaded or begun from another.
#include "train/masters.h"

#include <gtest/gtest.h>

#include "train/model_file.h"
#include "train/run_folder.h"
#include "train/run_precision.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

class MastersTest : public ::testing::Test {
 protected:
  MastersTest() {
    write_text(folder);
    config = micro_config(folder);
    config.optimizer.masters = StateFormat::bf16;
  }

  static DType expected_type(const Shape& shape) { return shape.size() == 2 ? DType::bf16 : DType::f32; }

  TemporaryFolder folder;
  RunConfig config;
  TrainingObserver silent;
};

TEST_F(MastersTest, MatricesAreBf16InMemoryAndInTheFile) {
  config.model.position = PositionKind::learned;
  config.model.tie_embeddings = false;
  run_training(config, silent);
  const Safetensors file = read_part(model_path(config.run.dir));
  for (const NamedArray& array : file.arrays)
    EXPECT_EQ(array.dtype, expected_type(array.shape)) << array.name;

  struct Types : ModuleVisitor {
    void parameter(const std::string& name, Parameter& parameter) override {
      EXPECT_EQ(parameter.value.dtype(), expected_type(parameter.value.shape())) << name;
      EXPECT_EQ(parameter.gradient.dtype(), DType::f32) << name;
    }
  } types;
  Trainer trainer(make_backend(config.backend, config.threads), config);
  trainer.model().visit("", types);
}

TEST_F(MastersTest, ALoadedRunEvaluatesToTheSameBits) {
  int run = 0;
  for (const Precision precision : {Precision::fp8, Precision::bf16, Precision::fp32}) {
    config.precision = precision;
    config.run.dir = folder.path("run" + std::to_string(run++));
    const TrainingResult result = run_training(config, silent);
    const LoadedRun loaded = load_run(config.run.dir);
    Context context(loaded.model->backend(), activation_dtype(precision));
    const LossSum loss = evaluate(*loaded.model, context, run_recipe(config), validation_batches(config),
                                  config.train.eval_batches);
    EXPECT_EQ(loss.nats, result.validation->nats) << name_of(precision);
    EXPECT_LT(result.train.mean(), 5.45) << "it learns: a model that knows nothing has 5.55";
  }
}

TEST_F(MastersTest, WeightsOfAnFp32RunAreRoundedToNearest) {
  config.optimizer.masters = StateFormat::f32;
  run_training(config, silent);
  const LoadedRun exact = load_run(config.run.dir);
  config.optimizer.masters = StateFormat::bf16;
  Trainer trainer(make_backend(config.backend, config.threads), config);
  load_weights(config.run.dir, config, trainer.model());
  const auto found = parameters_of(trainer.backend(), trainer.model());
  auto expected = parameters_of(exact.model->backend(), *exact.model);
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    const bool is_matrix = !found[i].name.ends_with(".gain") && !found[i].name.ends_with(".bias");
    for (float& value : expected[i].value) value = is_matrix ? to_float(to_bf16(value)) : value;
    EXPECT_EQ(found[i].value, expected[i].value) << found[i].name;
  }
}

}  // namespace
}  // namespace quaver
