/// Numbers for people.
#pragma once

#include <cstdint>
#include <string>

namespace quaver::cli {

/// Three significant digits and a unit prefix: 1.91k, 24.0M, 812.
std::string with_prefix(double value);
/// 9m12s, 2h03m, 41s.
std::string duration(double seconds);
/// 3.0e-4
std::string scientific(double value);
/// 1.25 GiB
std::string bytes(std::int64_t count);

}  // namespace quaver::cli
