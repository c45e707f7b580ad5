// The inputs of corpus/ through their targets, and each of them damaged in many ways.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <ostream>
#include <string>

#include "base/files.h"
#include "base/random.h"
#include "fuzz/targets.h"

namespace quaver::fuzz {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kDamaged = 60;

/// The input with some bytes replaced, and now and then cut off.
std::string damaged(std::string input, std::uint64_t seed) {
  const Random random(seed, stable_hash(input));
  if (input.empty()) return input;
  for (std::uint64_t i = 0; i < 1 + seed % 4; ++i) {
    input[random.below(2 * i, input.size())] = static_cast<char>(random.below(2 * i + 1, 256));
  }
  if (seed % 3 == 0) input.resize(random.below(100, input.size()));
  return input;
}

}  // namespace

void PrintTo(const Target& target, std::ostream* out) {
  *out << target.name;
}

namespace {

class FuzzCorpus : public testing::TestWithParam<Target> {};

TEST_P(FuzzCorpus, IsAcceptedOrRefusedWithAnError) {
  const Target target = GetParam();
  const fs::path folder = fs::path(QUAVER_SOURCE_DIR) / "tests/fuzz/corpus" / target.name;
  int inputs = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    SCOPED_TRACE(entry.path());
    const std::string input = read_file(entry.path());
    target.run(input);
    for (std::uint64_t seed = 0; seed < kDamaged; ++seed) target.run(damaged(input, seed));
    ++inputs;
  }
  EXPECT_GT(inputs, 2);
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, testing::ValuesIn(targets().begin(), targets().end()),
                         [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace quaver::fuzz
