/// Numbers for people.
#pragma once

#include <cstdint>
#include <string>

#include "train/loss.h"

namespace quaver::cli {

/// Three significant digits and a unit prefix: 1.91k, 24.0M, 812.
std::string with_prefix(double value);
/// 9m12s, 2h03m, 41s.
std::string duration(double seconds);
/// 3.0e-4
std::string scientific(double value);
/// 1.25 GiB
std::string bytes(std::int64_t count);
/// 1.2345 nats per token, 0.9876 bits per byte
std::string loss_text(const LossSum& loss);
/// Bits per byte with that many decimals, or "n/a" where the bytes are not known.
std::string bpb_text(const LossSum& loss, int decimals);

}  // namespace quaver::cli
