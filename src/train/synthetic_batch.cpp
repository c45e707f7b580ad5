#include "train/synthetic_batch.h"

#include "base/random.h"

namespace quaver {

HostBatch synthetic_batch(const RunConfig& config, std::uint64_t index) {
  HostBatch batch;
  batch.batch = config.train.batch;
  batch.length = config.model.context;
  const std::int64_t count = batch.batch * batch.length;
  const Random random(config.train.seed, index);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto draw = [&](std::int64_t at) {
      return static_cast<std::int32_t>(
          random.below(static_cast<std::uint64_t>(at), static_cast<std::uint64_t>(config.model.vocab)));
    };
    batch.tokens.push_back(draw(i));
    batch.targets.push_back(draw(i + 1));
    batch.positions.push_back(static_cast<std::int32_t>(i % batch.length));
  }
  batch.first_key.assign(static_cast<std::size_t>(count), 0);
  batch.target_count = batch.target_bytes = count;
  return batch;
}

}  // namespace quaver
