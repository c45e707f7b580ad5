/// Generating one token at a time with a key/value cache, FP8 against BF16 weights, in alternation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "train/run_config.h"

namespace quaver {

struct GenerationSpeed {
  double seconds = 0;  ///< median of one token
  double tokens_per_second = 0;
  double weight_bytes = 0;     ///< of the Linears, each read once a token
  double bandwidth_share = 0;  ///< weight_bytes over what could be read in that time; 0 where not measured
};

struct GenerationBenchmark {
  std::string backend;
  std::int64_t cached = 0;  ///< tokens in the cache at the beginning
  std::int64_t tokens = 0;
  double read_bandwidth = 0;  ///< bytes per second, median; 0 where none was measured
  GenerationSpeed fp8, bf16;
  double ratio = 0;  ///< FP8 over BF16 speed: median over neighbouring tokens
};

/// Measures bytes read per second; called before every pair of tokens. May be empty.
using BandwidthMeter = std::function<double()>;

/// Times `tokens` pairs of tokens of a model with random weights, after `cached` tokens of prompt.
GenerationBenchmark benchmark_generation(const RunConfig& config, std::int64_t cached, std::int64_t tokens,
                                         const BandwidthMeter& measure_bandwidth);

}  // namespace quaver
