#include "train/slot_list.h"

#include <gtest/gtest.h>

#include <optional>

#include "support/test_backends.h"
#include "train/fp8_report.h"
#include "train/scale_snapshot.h"
#include "train/step_casts.h"
#include "train/trainer.h"
#include "training_support.h"

namespace quaver {
namespace {

class SlotListTest : public ::testing::TestWithParam<std::string> {
 protected:
  SlotListTest() {
    write_text(folder);
    config = micro_config(folder);
    config.model.layers = 1;
    config.model.context = 16;
    config.train.batch = 1;
    trainer.emplace(testing::make_test_backend(GetParam()), config);
  }
  Module& model() { return trainer->model(); }
  Backend& backend() { return trainer->backend(); }
  void step() {
    const HostBatch batch = training_batches(config).at(0);
    trainer->step(1e-3f, std::span(&batch, 1));
  }
  /// Gives every Linear slots with a history of another length.
  void replace_slots() {
    DelayedScaling longer;
    longer.amax_history_len = 7;
    SlotList list(model());
    for (Linear* const linear : list.linears()) linear->prepare_fp8(longer);
  }
  float scale_of(const std::shared_ptr<ScalingSlot>& slot) {
    return download(backend(), slot->scale).front();
  }

  TemporaryFolder folder;
  RunConfig config;
  std::optional<Trainer> trainer;
};

TEST_P(SlotListTest, HasTheSlotsOfNowAndAnotherVersionWhenTheyAreOthers) {
  SlotList list(model());
  EXPECT_TRUE(list.slots().empty());
  const std::uint64_t none = list.version();
  step();
  EXPECT_EQ(list.slots(), slots_of(model()));
  EXPECT_FALSE(list.slots().empty());
  const std::uint64_t first = list.version();
  EXPECT_NE(first, none);
  step();
  EXPECT_EQ(list.slots(), slots_of(model()));
  EXPECT_EQ(list.version(), first);
  replace_slots();
  EXPECT_EQ(list.slots(), slots_of(model()));
  EXPECT_NE(list.version(), first);
}

TEST_P(SlotListTest, CastsOfAStepAreCountedThoughSlotsComeMeanwhile) {
  SlotList list(model());
  StepCasts casts(backend(), list);
  CastCounts before;
  for (int i = 0; i < 3; ++i) {
    if (i == 2) {
      replace_slots();  // whose counters begin anew, and which the step replaces
      before = {};
    }
    casts.begin();
    step();
    casts.end();
    const CastCounts after = count_casts(backend(), model());
    EXPECT_EQ(casts.counts(), after - before) << i;
    EXPECT_GT(casts.counts().cast, 0) << i;
    before = after;
  }
}

TEST_P(SlotListTest, ASnapshotPutsBackScalesAndMakesLaterSlotsNew) {
  SlotList list(model());
  ScaleSnapshot snapshot(backend(), list);
  snapshot.take();
  step();
  snapshot.restore();
  for (const auto& slot : slots_of(model())) {
    EXPECT_EQ(scale_of(slot), 1.0f);
    for (const float amax : download(backend(), slot->amax_history)) EXPECT_EQ(amax, 0.0f);
  }
  step();
  std::vector<float> scales;
  std::vector<std::vector<float>> histories;
  for (const auto& slot : slots_of(model())) {
    scales.push_back(scale_of(slot));
    histories.push_back(download(backend(), slot->amax_history));
  }
  snapshot.take();
  for (int i = 0; i < 2; ++i) {  // the copies stay
    for (const auto& slot : slots_of(model())) {
      backend().fill(slot->scale, 3);
      backend().fill(slot->amax_history, 5);
    }
    snapshot.restore();
    std::size_t at = 0;
    for (const auto& slot : slots_of(model())) {
      EXPECT_EQ(scale_of(slot), scales[at]);
      EXPECT_EQ(download(backend(), slot->amax_history), histories[at++]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SlotListTest, ::testing::Values("reference", "cpu", "emulation"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace quaver
