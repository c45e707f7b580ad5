/// The ceiling of a device: its own matrix products.
#pragma once

#include "quaver/backend.h"

namespace quaver::cli {

/// BF16 floating-point operations per second of large square products on random numbers, repeated for about
/// `seconds`.
double measure_product_peak(Backend& backend, double seconds);

}  // namespace quaver::cli
