/// What is reported of every optimizer step.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "observe/event_file.h"
#include "train/fp8_report.h"
#include "train/loss.h"

namespace quaver {

struct StepReport {
  std::int64_t step = 0;  ///< 1 for the first
  LossSum loss;
  float lr = 0, gradient_norm = 0;
  double seconds = 0;  ///< of the step, without evaluation and saving
  CastCounts casts;
  std::optional<LossSum> validation;  ///< on evaluation steps
  std::string skipped;                ///< why nothing was updated; empty: it was

  double tokens_per_second() const { return static_cast<double>(loss.tokens) / seconds; }
};

/// Its finite numbers by the names they have in metrics.jsonl, without the step.
std::vector<Scalar> scalars_of(const StepReport& report);

/// The line of metrics.jsonl. Numbers that are not finite become null.
std::string to_json_line(const StepReport& report);

/// The lines of a metrics.jsonl for steps up to `step`. A line that a crash cut off is left out.
std::string metrics_until(std::int64_t step, std::string_view lines);

}  // namespace quaver
