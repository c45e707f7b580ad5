#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/check.h"
#include "base/files.h"
#include "cli/commands.h"
#include "text/tokenizer.h"

namespace quaver::cli {
namespace {

using Clock = std::chrono::steady_clock;

/// Seconds of one pass; every pass begins with an empty cache.
double time_encode(const Tokenizer& tokenizer, const std::string& text, std::vector<std::int32_t>& tokens) {
  tokens.clear();
  const auto begin = Clock::now();
  tokenizer.make_encoder()->encode(text, tokens);
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

int bench_tokenize(const BenchTokenizeArguments& arguments) {
  const auto tokenizer = load_tokenizer(arguments.tokenizer);
  const std::string text = read_file(arguments.text);
  if (text.empty()) fail(ErrorKind::data, "{}: is empty", arguments.text);
  std::vector<std::int32_t> tokens;
  std::vector<double> seconds;
  for (int round = 0; round < arguments.rounds; ++round)
    seconds.push_back(time_encode(*tokenizer, text, tokens));
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2], megabytes = static_cast<double>(text.size()) / 1e6;
  const double per_token = static_cast<double>(text.size()) / static_cast<double>(tokens.size());
  if (arguments.json) {
    const nlohmann::ordered_json json = {{"bytes", text.size()},
                                         {"tokens", tokens.size()},
                                         {"bytes_per_token", per_token},
                                         {"vocab", tokenizer->vocab()},
                                         {"mb_per_s", megabytes / median}};
    fmt::print("{}\n", json.dump());
    return 0;
  }
  fmt::print("{:.1f} MB in {} tokens ({:.2f} bytes each), one thread, median of {} passes\n", megabytes,
             tokens.size(), per_token, arguments.rounds);
  fmt::print("{:.1f} MB/s\n", megabytes / median);
  return 0;
}

}  // namespace quaver::cli
