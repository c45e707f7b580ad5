#include "base/busy_timer.h"

#include <algorithm>
#include <chrono>
#include <ctime>

namespace quaver {

BusyTimer::BusyTimer(int threads) : one_thread_(threads == 1), begin_(now()) {}

double BusyTimer::seconds() const {
  return now() - begin_;
}

double BusyTimer::now() const {
  if (one_thread_) {
    timespec time{};
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0)
      return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace quaver
