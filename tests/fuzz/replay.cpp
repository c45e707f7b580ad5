/// Runs one fuzz target on every file of a folder, on every prefix of each, and on each damaged in some bytes: the
/// corpus as an ordinary test.
///
/// usage: replay_TARGET FOLDER
#include <fmt/format.h>

#include <exception>
#include <filesystem>
#include <string>

#include "base/files.h"
#include "base/random.h"
#include "fuzz/target.h"

namespace {

constexpr std::uint64_t kDamaged = 60;

std::string damaged(std::string input, std::uint64_t seed) {
  if (input.empty()) return input;
  const quaver::Random random(seed, quaver::stable_hash(input));
  for (std::uint64_t i = 0; i < 1 + seed % 4; ++i) {
    input[random.below(2 * i, input.size())] = static_cast<char>(random.below(2 * i + 1, 256));
  }
  return input;
}

void run(const std::string& input) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: replay_TARGET FOLDER");
  std::size_t files = 0, inputs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    const std::string content = quaver::read_file(entry.path());
    ++files;
    for (std::size_t size = 0; size <= content.size(); ++size, ++inputs) {
      // A copy of exactly this size, so that an address sanitizer sees what reads past it.
      run(content.substr(0, size));
    }
    for (std::uint64_t seed = 0; seed < kDamaged; ++seed, ++inputs) run(damaged(content, seed));
  }
  if (files == 0) throw std::runtime_error("the corpus is empty");
  fmt::print("{} files, {} inputs\n", files, inputs);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "replay: {}\n", error.what());
  return 1;
}
