/// What happens inside a trained model on text: how large the residual stream grows, how much attention rests on
/// the first token, how far the gates open.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "quaver/language_model.h"
#include "text/batches.h"

namespace quaver {

struct BlockProbe {
  double largest_residual =
      0;  ///< largest magnitude in the residual stream before the attention and before the MLP
  /// Mean attention probability, by head, of the first token that a query sees: that of its document, or of the window
  /// where the document began earlier. Queries that see themselves alone do not count.
  std::vector<double> first_token_share;
  double gate_mean = 0;       ///< mean of act(g), the factor of the attention's output
  double gate_low_share = 0;  ///< share of the factors whose magnitude is below kLowGate

  double mean_first_token_share() const;  ///< over all heads
};
constexpr float kLowGate = 0.1f;

struct ModelProbe {
  std::int64_t tokens = 0;
  std::vector<BlockProbe> blocks;
  double largest_output = 0;        ///< largest magnitude of the residual stream after the last block
  double uniform_share = 0;         ///< what first_token_share would be if every query attended evenly
  bool has_gates = false;           ///< else gate_mean and gate_low_share mean nothing
  double largest_residual() const;  ///< anywhere
};

/// Runs evaluation on `max_batches` batches spread evenly over the validation text (0: on all of it), under `recipe`
/// (none: in high precision), and measures. Leaves no trace in the FP8 state.
ModelProbe probe(LanguageModel& model, Context& context, const std::optional<Recipe>& recipe,
                 const ValidationBatches& batches, std::int64_t max_batches);

}  // namespace quaver
