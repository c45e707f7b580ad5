/// The ceiling of operations that are bound by memory.
#pragma once

#include <vector>

#include "base/threads.h"

namespace quaver {

/// Copies between two buffers of its own, in main memory.
class CopyBandwidth {
 public:
  explicit CopyBandwidth(int threads);

  /// Bytes read and written per second by the faster of two copies of 64 MiB: by one stretch per thread, and by pieces of
  /// 256 KiB, both with the C library's memcpy.
  double measure();

 private:
  double seconds_of_copy(std::int64_t piece);

  Threads threads_;
  std::vector<unsigned char> from_, to_;
};

}  // namespace quaver
