/// The FP8 state of a model as data: captured from its Linears, put back, and stored as safetensors.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formats/safetensors.h"
#include "observe/exponent_histogram.h"
#include "quaver/linear.h"

namespace quaver {

struct SlotState {
  float scale = 1;
  std::vector<float> amax_history;     ///< empty: of another recipe than delayed scaling
  std::vector<std::int64_t> counters;  ///< kCastCounters of them; empty in files of before they were stored
  std::optional<ExponentHistogram> exponents;  ///< if they were ever counted
  friend bool operator==(const SlotState&, const SlotState&) = default;
};

/// The state of one Linear. Slots exist in modules that ran under a recipe; other recipes than delayed scaling have
/// nothing but counts in them.
struct LinearState {
  std::string name;
  std::optional<Recipe> recipe;
  std::array<GemmRecord, 3> gemms;  ///< fprop, dgrad, wgrad
  bool owns_input = true;           ///< false: the input slot is that of a sibling, and absent here
  std::optional<SlotState> input, weight, grad_output;
  /// Linear::smooth_input's, one per input feature, beside which the weight's slot only counts; empty: the module never
  /// smoothed its input
  std::vector<float> channel_scales = {};
  GemmPolicies policy;  ///< for reports: restoring leaves policies to the configuration
};

/// The names of LinearState::gemms and of its slots, in files and in reports.
inline constexpr std::array<const char*, 3> kGemmNames = {"fprop", "dgrad", "wgrad"};
inline constexpr std::array<std::pair<const char*, std::optional<SlotState> LinearState::*>, 3> kSlots = {{
    {"input", &LinearState::input},
    {"weight", &LinearState::weight},
    {"grad_output", &LinearState::grad_output},
}};

std::vector<LinearState> capture_fp8_state(Backend& backend, Module& module);

/// Sets slots and GEMM records of the Linears of `module`. Throws Error(data) unless the names are the same.
void restore_fp8_state(Backend& backend, Module& module, const std::vector<LinearState>& states);

/// A recipe other than delayed scaling comes back as CustomScaling with its description as a name: there is no state that
/// would need more. Slots of delayed scaling as arrays "<linear>.<slot>.scale" [1] and ".amax_history" [L], channel scales as
/// "<linear>.input.channel_scales"; everything
/// else as JSON under the metadata key "linears".
Safetensors to_safetensors(const std::vector<LinearState>& states);

/// Throws Error(data), naming `source`, when the content is not what `to_safetensors` writes.
std::vector<LinearState> fp8_state_from(const Safetensors& file, const std::string& source);

}  // namespace quaver
