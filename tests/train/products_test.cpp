/// Training with products = fast: where there is a matrix unit, its bits; elsewhere the exact ones.
#include <gtest/gtest.h>

#include <vector>

#include "base/files.h"
#include "train/trainer.h"
#include "train/training_run.h"
#include "training_support.h"

namespace quaver {
namespace {

class ProductsTest : public ::testing::Test {
 protected:
  ProductsTest() {
    write_text(folder);
    config = micro_config(folder);
    config.products = Products::fast;
  }

  void train(std::int64_t steps = 0) {
    TrainingObserver silent;
    if (steps > 0) config.train.steps = steps;
    run_training(config, silent);
  }
  std::string state(const std::string& file) const {
    return read_file(fmt::format("{}/checkpoints/step-{:08}/{}", config.run.dir, config.train.steps, file));
  }

  TemporaryFolder folder;
  RunConfig config;
};

TEST_F(ProductsTest, SlowTheLossFallsAndThreadsDoNotChangeBits) {
  config.train.steps = 12;
  std::vector<std::string> weights, scales;
  for (int threads : {1, 2, 3}) {
    config.threads = threads;
    config.run.dir = folder.path(fmt::format("run{}", threads));
    train();
    weights.push_back(state("model.safetensors"));
    scales.push_back(state("fp8_state.safetensors"));
    const auto metrics = read_metrics(config);
    EXPECT_LT(metrics.back().at("loss").get<double>(), metrics.front().at("loss").get<double>() - 0.3);
  }
  EXPECT_EQ(weights[1], weights[0]);
  EXPECT_EQ(weights[2], weights[0]);
  EXPECT_EQ(scales[1], scales[0]);
}

TEST_F(ProductsTest, ARunGoesOnUnderTheOther) {
  for (const Products first : {Products::exact, Products::fast}) {
    config.run.dir = folder.path(first == Products::exact ? "exact" : "fast");
    config.products = first;
    config.train.save_every = 3;
    train(3);
    config.products = first == Products::exact ? Products::fast : Products::exact;
    train(6);
    EXPECT_EQ(read_metrics(config).size(), 6u);
  }
}

// One step of the same weights: the numbers that are cast differ by the products' last bits alone.
TEST_F(ProductsTest, TheFirstLossIsTheExactOneButForRounding) {
  std::vector<double> losses;
  for (const Products products : {Products::exact, Products::fast}) {
    Trainer trainer(make_backend("cpu", 2, products), config);
    const HostBatch batch = training_batches(config).at(0);
    losses.push_back(trainer.step(config.train.lr, std::span(&batch, 1)).loss.mean());
  }
  EXPECT_NEAR(losses[1], losses[0], 2e-3 * losses[0]);
}

}  // namespace
}  // namespace quaver
