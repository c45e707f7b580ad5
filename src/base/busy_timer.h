/// Times for benchmarks.
#pragma once

#include <vector>

namespace quaver {

/// Seconds that work takes. Work of one thread is timed by the processor time of the calling thread, so that programs
/// that share its processor do not count; work of several threads by the wall clock.
class BusyTimer {
 public:
  explicit BusyTimer(int threads);
  /// Since construction. To be called by the constructing thread.
  double seconds() const;

 private:
  double now() const;
  bool one_thread_;
  double begin_;
};

/// The middle value; of two, their mean. `values` must not be empty.
double median(std::vector<double> values);

}  // namespace quaver
