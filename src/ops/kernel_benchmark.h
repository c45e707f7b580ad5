/// Every bandwidth-bound operation of a backend beside a copy in its memory, measured in turn: the speed of memory
/// changes with the machine's other users.
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
  /// Allocates the tensors on the backend and returns what is to be timed.
  std::function<std::function<void()>(Backend&)> prepare;
};

/// All operations but matrix products and attention, at the widths of gated-124m for that many tokens.
std::vector<KernelCase> kernel_cases(std::int64_t tokens);

struct KernelSpeed {
  std::string name, shape;
  int threads = 0;  ///< of the host; 0 on a device
  double bytes = 0;
  double seconds = 0;                ///< median of one call
  double copy_bytes_per_second = 0;  ///< read and written by a copy; median
  double ratio = 0;  ///< of the operation's bytes per second to the copy's: median over the rounds
  double bytes_per_second() const { return bytes / seconds; }
};

/// Times one operation in `rounds` rounds. On the host, which `backend` uses with that many threads, the copy of a round
/// is the faster of two: the C library's memcpy of one stretch per thread, and of pieces of 256 KiB. On a device it is
/// the device's own. Operands that fit into a cache can exceed it.
KernelSpeed measure_kernel(Backend& backend, const KernelCase& kernel, int threads, int rounds);

}  // namespace quaver
