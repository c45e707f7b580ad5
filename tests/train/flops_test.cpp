#include "train/flops.h"

#include <gtest/gtest.h>

#include "quaver/backend.h"
#include "training_support.h"

namespace quaver {
namespace {

TEST(Flops, CountEveryLinearAndHalfOfTheAttentionSquare) {
  TemporaryFolder folder;
  const ModelConfig config = micro_config(folder).model;
  LanguageModel model(make_backend("reference"), config, 1);
  const double qkv = 32 * (32 + 16 + 16 + 32), out = 32 * 32, mlp = 3 * 32 * 64, head = 257 * 32;
  const double attention = 3 * (4 * 64 * 4 * 8) / 2.0;  // forward and twice that backward, half masked
  EXPECT_EQ(training_flops_per_token(model, 64), 6 * (2 * (qkv + out + mlp) + head) + 2 * attention);
}

TEST(Flops, DoNotDependOnTying) {
  TemporaryFolder folder;
  ModelConfig config = micro_config(folder).model;
  LanguageModel tied(make_backend("reference"), config, 1);
  config.tie_embeddings = false;
  LanguageModel untied(make_backend("reference"), config, 1);
  EXPECT_EQ(training_flops_per_token(tied, 64), training_flops_per_token(untied, 64));
}

}  // namespace
}  // namespace quaver
