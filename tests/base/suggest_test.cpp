#include "base/suggest.h"

#include <gtest/gtest.h>

#include <vector>

namespace quaver {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("steps", "steps"), 0u);
  EXPECT_EQ(edit_distance("", "lr"), 2u);
  EXPECT_EQ(edit_distance("lr", ""), 2u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("stpes", "steps"), 1u);
  EXPECT_EQ(edit_distance("ab", "ba"), 1u);
}

TEST(NearestName, FindsWhatWasMeant) {
  const std::vector<std::string> names{"train.lr", "train.steps", "train.seed"};
  EXPECT_EQ(nearest_name("train.step", names), "train.steps");
  EXPECT_EQ(nearest_name("train.sede", names), "train.seed");
  EXPECT_EQ(nearest_name("train.lr", names), "train.lr");
}

TEST(NearestName, SaysNothingRatherThanNonsense) {
  const std::vector<std::string> names{"train.lr", "max"};
  EXPECT_EQ(nearest_name("zzzzzzzz", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(nearest_name("lr", {}), "");
}

}  // namespace
}  // namespace quaver
