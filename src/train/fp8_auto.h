/// fp8.auto: at start every product of the model is timed in FP8 and in BF16, and those that FP8 does not make faster
/// become overrides.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quaver/backend.h"
#include "quaver/module.h"
#include "train/fp8_auto_steps.h"
#include "train/run_config.h"

namespace quaver {

/// Seconds of one micro-batch in a Linear, lower quartiles of alternating measurements. Operands are charged to the form in which
/// they are read: a tensor that one GEMM reads in FP8 and another in BF16 is written twice.
struct LinearTimes {
  std::array<double, 3> fp8{}, bf16{};  ///< fprop, dgrad, wgrad alone
  double input_fp8 = 0, input_bf16 = 0,
         input_both = 0;                   ///< the producer's write of x, per module that reads it
  double weight_fp8 = 0, weight_bf16 = 0;  ///< the weight's copies, per micro-batch
  double gradient_fp8 = 0;                 ///< the cast of dy, which exists in BF16

  /// With these GEMMs in FP8, casts included.
  double total(const std::array<bool, 3>& in_fp8) const;
};

/// The fastest choice among those that keep out of FP8 what `allowed` keeps out; of equals the one with most in FP8.
std::array<bool, 3> fastest_choice(const LinearTimes& times, const std::array<bool, 3>& allowed);

/// Linears of one shape, one number of readers of their input, and one policy.
struct MeasuredLinears {
  std::vector<std::string> names;
  std::int64_t rows = 0, in_features = 0, out_features = 0;
  LinearTimes times;
  std::array<bool, 3> allowed{}, in_fp8{};

  /// "1.10 ms a micro-batch, 1.32 ms with dgrad in FP8": why GEMM `gemm` was taken out of FP8.
  std::string reason(std::size_t gemm) const;
};

/// Times the Linears of `model`, one of each kind, on `rows` tokens. What their policies keep out of FP8 stays out. A
/// weight is cast once for `micro_batches_per_step`.
std::vector<MeasuredLinears> measure_linears(Backend& backend, Module& model, const Recipe& recipe,
                                             std::int64_t rows, std::int64_t micro_batches_per_step);

/// What was taken out of FP8, as overrides. `all`: every Linear of the model, so that one pattern can stand for many.
std::vector<Fp8Override> overrides_of(const std::vector<MeasuredLinears>& measured,
                                      const std::vector<std::string>& all);

/// For people.
std::string describe(const MeasuredLinears& measured);

/// All that fp8.auto measured.
struct Fp8AutoReport {
  std::vector<MeasuredLinears> linears;  ///< empty without fp8.auto
  std::optional<StepTimes> steps;        ///< on devices that work beside the host
};
/// Lines for people.
std::vector<std::string> describe(const Fp8AutoReport& report);

}  // namespace quaver
