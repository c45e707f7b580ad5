/// A choice between bits and speed.
#pragma once

namespace quaver {

/// How a CPU multiplies matrices of BF16 and FP8 numbers. exact: every processor gives the same bits. fast: in the processor's matrix
/// unit where it has one, many times faster and with other last bits, which do not depend on the number of threads; elsewhere exact.
enum class Products { exact, fast };

}  // namespace quaver
