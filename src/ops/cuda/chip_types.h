/// What the chips multiply: pure functions of the compute capability.
#pragma once

#include <vector>

#include "ops/backend_facts.h"

namespace quaver::cuda {

/// Types of matrix products on a chip, `chip` = 10 * major + minor: 89 for compute capability 8.9.
std::vector<TypeFact> types_of_chip(int chip);

}  // namespace quaver::cuda
