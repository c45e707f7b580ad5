/// The operations of a backend beside their ceilings, measured in turn, because both change with the machine's other users:
/// a copy in its memory, or for products and attention the peak of BF16 products.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "quaver/backend.h"

namespace quaver {

/// One operation on one set of tensors.
struct KernelCase {
  std::string name, shape;
  double bytes = 0;             ///< it must read and write, every operand counted once
  double transposed_bytes = 0;  ///< more, where FP8 results are also written transposed
  double flops = 0;             ///< of products and attention, causal work only; 0: bound by memory
  /// Allocates the tensors on the backend and returns what is to be timed.
  std::function<std::function<void()>(Backend&)> prepare;
  /// Whether the backend has the operation; null: every one has.
  std::function<bool(const Backend&)> exists = nullptr;
};

/// All operations at the widths of gated-124m for that many tokens.
std::vector<KernelCase> kernel_cases(std::int64_t tokens);

struct KernelSpeed {
  std::string name, shape;
  int threads = 0;  ///< of the host; 0 on a device
  double bytes = 0;
  double seconds = 0;  ///< median of one call
  double flops = 0;    ///< 0: bound by memory
  double ceiling =
      0;  ///< bytes per second read and written by a copy, or floating-point operations per second; median
  double ratio = 0;  ///< of the operation's rate to the ceiling: median over the rounds
  double rate() const { return (flops > 0 ? flops : bytes) / seconds; }
};

/// Times one operation in `rounds` rounds. On the host, which `backend` uses with that many threads, the copy of a round
/// is the faster of two: the C library's memcpy of one stretch per thread, and of pieces of 256 KiB. On a device it is
/// the device's own. Operands that fit into a cache can exceed it. `peak` measures the ceiling of products.
KernelSpeed measure_kernel(Backend& backend, const KernelCase& kernel, int threads, int rounds,
                           const std::function<double()>& peak);

}  // namespace quaver
