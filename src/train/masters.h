/// BF16 masters.
#pragma once

#include "quaver/language_model.h"

namespace quaver {

/// Stores all parameters that are matrices as `dtype` (f32 or bf16), rounded to nearest; vectors stay f32.
void store_masters(LanguageModel& model, DType dtype);

}  // namespace quaver
