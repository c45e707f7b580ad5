/// When scales are updated: the scope rules of delayed scaling, with an updater that only records.
#include "quaver/autocast.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "quaver/error.h"

namespace quaver {
namespace {

class RecordingUpdater : public ScaleUpdater {
 public:
  void update_scales(std::span<const ScaleUpdate> updates) override {
    calls.emplace_back(updates.begin(), updates.end());
  }
  std::vector<std::vector<ScaleUpdate>> calls;
};

class AutocastTest : public testing::Test {
 protected:
  RecordingUpdater updater;
  Context context{updater};
  std::shared_ptr<ScalingSlot> slot = std::make_shared<ScalingSlot>();
};

TEST_F(AutocastTest, OutsideAScopeNothingRunsInFp8) {
  EXPECT_FALSE(context.recipe());
}

TEST_F(AutocastTest, TheInnermostScopeDecides) {
  const Autocast outer(context, true, DelayedScaling{.margin = 1});
  EXPECT_EQ(std::get<DelayedScaling>(*context.recipe()).margin, 1);
  {
    const Autocast inner(context, true, DelayedScaling{.margin = 2});
    EXPECT_EQ(std::get<DelayedScaling>(*context.recipe()).margin, 2);
    const Autocast disabled(context, false);
    EXPECT_FALSE(context.recipe());
  }
  EXPECT_EQ(std::get<DelayedScaling>(*context.recipe()).margin, 1);
}

TEST_F(AutocastTest, ForwardSlotsAreUpdatedWhenTheOutermostScopeEnds) {
  {
    const Autocast outer(context, true);
    {
      const Autocast inner(context, true);
      context.register_forward(slot, *context.recipe());
      context.register_forward(slot, *context.recipe());  // a module called twice has one update
    }
    EXPECT_TRUE(updater.calls.empty());
  }
  ASSERT_EQ(updater.calls.size(), 1u);
  ASSERT_EQ(updater.calls[0].size(), 1u);
  EXPECT_EQ(updater.calls[0][0].fp8_max, 448.0f);
}

TEST_F(AutocastTest, EveryScopeUpdatesItsOwnSlotsUnderItsOwnRecipe) {
  const auto run = [&](std::initializer_list<std::shared_ptr<ScalingSlot>> slots, int margin) {
    const Autocast scope(context, true, DelayedScaling{.margin = margin});
    for (const auto& used : slots) context.register_forward(used, *context.recipe());
  };
  const auto history = [](float first) {
    auto* const memory = new float(first);
    const auto storage =
        std::make_shared<Storage>(memory, sizeof first, Device::host, [memory] { delete memory; });
    auto made = std::make_shared<ScalingSlot>();
    made->amax_history = Tensor(storage, DType::f32, {1});
    return made;
  };
  const auto a = history(1), b = history(2);
  run({a, b}, 0);
  run({a, b}, 0);  // the same again
  run({a, b}, 3);
  run({b}, 3);
  { const Autocast without_slots(context, true); }
  run({b, a}, 3);
  const std::vector<std::vector<std::shared_ptr<ScalingSlot>>> expected = {
      {a, b}, {a, b}, {a, b}, {b}, {b, a}};
  const int margins[] = {0, 0, 3, 3, 3};
  ASSERT_EQ(updater.calls.size(), expected.size());
  for (std::size_t call = 0; call < expected.size(); ++call) {
    ASSERT_EQ(updater.calls[call].size(), expected[call].size()) << call;
    for (std::size_t i = 0; i < expected[call].size(); ++i) {
      const ScaleUpdate& update = updater.calls[call][i];
      EXPECT_EQ(update.slot.amax_history.raw(), expected[call][i]->amax_history.raw()) << call;
      EXPECT_EQ(update.margin, margins[call]) << call;
    }
  }
}

TEST_F(AutocastTest, ModulesThatDidNotRunAreNotUpdated) {
  { const Autocast scope(context, true); }
  EXPECT_TRUE(updater.calls.empty());
}

TEST_F(AutocastTest, BackwardSlotsAreUpdatedOncePerBackwardPass) {
  {
    const BackwardPass pass(context);
    context.register_backward(slot, DelayedScaling{});
    context.register_backward(slot, DelayedScaling{});
  }
  ASSERT_EQ(updater.calls.size(), 1u);
  ASSERT_EQ(updater.calls[0].size(), 1u);
  EXPECT_EQ(updater.calls[0][0].fp8_max, 57344.0f);
}

TEST_F(AutocastTest, TheE4m3FormatUsesItsRangeInBothPasses) {
  {
    const BackwardPass pass(context);
    context.register_backward(slot, DelayedScaling{.fp8_format = Fp8Format::e4m3});
  }
  EXPECT_EQ(updater.calls.at(0).at(0).fp8_max, 448.0f);
}

TEST_F(AutocastTest, LeavingByAnExceptionUpdatesNothingAndForgetsTheModules) {
  const auto interrupted = [&] {
    const Autocast scope(context, true);
    context.register_forward(slot, *context.recipe());
    throw std::runtime_error("interrupted");
  };
  EXPECT_THROW(interrupted(), std::runtime_error);
  { const Autocast scope(context, true); }
  EXPECT_TRUE(updater.calls.empty());
}

TEST_F(AutocastTest, TwoContextsKeepTwoRecipes) {
  Context other(updater);
  const Autocast scope(context, true, DelayedScaling{.margin = 1});
  const Autocast other_scope(other, true, DelayedScaling{.margin = 3});
  EXPECT_EQ(std::get<DelayedScaling>(*context.recipe()).margin, 1);
  EXPECT_EQ(std::get<DelayedScaling>(*other.recipe()).margin, 3);
}

TEST_F(AutocastTest, MistakesAreErrors) {
  EXPECT_THROW(context.register_forward(slot, DelayedScaling{}), Error);   // no scope
  EXPECT_THROW(context.register_backward(slot, DelayedScaling{}), Error);  // no backward pass
  Context f32(updater, DType::f32);
  EXPECT_THROW(Autocast(f32, true), Error);
  EXPECT_NO_THROW(Autocast(f32, false));
  const BackwardPass pass(context);
  EXPECT_THROW(BackwardPass{context}, Error);
}

}  // namespace
}  // namespace quaver
