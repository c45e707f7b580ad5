/// Work on its way to the device: started at once, or, inside `run`, first written to a list. A list ends after some
/// works and the next begins, so that the device has something to do while the host writes on. The first lists of a run
/// are short: until they end the device waits.
///
/// A list whose every kernel, shape and argument equals those of an earlier one is the same work: the device
/// then repeats what it recorded (a CUDA graph) with one call instead of hundreds. So a recording is a cache of
/// lists, and nobody has to know when a step differs from the last: it is simply another list.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "ops/cuda/stream.h"
#include "ops/cuda/work_list.h"
#include "quaver/backend.h"

namespace quaver::cuda {

/// Work that the device repeats with one call.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

/// A recording, or why there is none.
struct Recorded {
  std::unique_ptr<Recording> recording;
  std::string why_not;
};

class WorkQueue {
 public:
  using Recorder = std::function<Recorded(const WorkList&)>;
  static constexpr std::size_t kFirstListed = 8, kListed = 64;
  /// The first list of a run has `first` works, the next twice as many, and so on up to `most`.
  WorkQueue(DeviceStream stream, Recorder recorder, std::size_t first = kFirstListed,
            std::size_t most = kListed)
      : stream_(stream), record_(std::move(recorder)), first_(first), most_(most) {}

  DeviceStream device_stream() const { return stream_; }
  bool is_listing() const { return listing_; }

  /// Starts it now, or lists it with the values that it depends on. Values compare by their bytes, so they may have no
  /// padding: its bytes are anything, a list would look new every time, and nothing would be replayed. Checked where the
  /// compiler can tell (g++, as in the emulation): throws std::logic_error that names the work.
  template <typename F, typename... Values>
  void add(const char* name, const F& start, const Values&... values) {
    if (!listing_) return start();
    ((is_padded<Values>() ? fail_padded(name) : void()), ...);
    append_to_key(values...);
    list_.add(start);
    if (list_.size() == length_) end_list();
  }

  /// Starts what is listed; until the current `run` ends everything starts at once. For work that cannot wait.
  void stop_listing(const std::string& reason);

  /// See Backend::run_repeated.
  void run(const std::function<void()>& work);
  const RepeatUse& use() const { return use_; }

 private:
  using Bytes = std::vector<std::byte>;
  struct Known {
    Bytes key;
    Recorded recorded;
  };
  static constexpr std::size_t kMostRecordings = 256, kMostSeen = 4096;

  template <typename T>
  static bool is_padded() {
#if defined(__has_builtin) && !defined(__CUDACC__)
#if __has_builtin(__builtin_clear_padding)
    static const bool padded = [] {
      alignas(T) unsigned char bytes[sizeof(T)];
      std::memset(bytes, 1, sizeof bytes);
      __builtin_clear_padding(reinterpret_cast<T*>(bytes));
      return std::memchr(bytes, 0, sizeof bytes) != nullptr;
    }();
    return padded;
#endif
#endif
    return false;
  }
  [[noreturn]] static void fail_padded(const char* name);
  template <typename... Values>
  void append_to_key(const Values&... values) {
    static_assert((std::is_trivially_copyable_v<Values> && ...));
    std::byte bytes[(sizeof(Values) + ...)];
    std::byte* end = bytes;
    ((std::memcpy(end, &values, sizeof values), end += sizeof values), ...);
    key_.insert(key_.end(), bytes, end);
  }
  void start_list();
  void end_list();
  void start_or_replay();
  bool was_seen();

  DeviceStream stream_;
  Recorder record_;
  std::size_t first_, most_;
  std::size_t length_ = 0;  // at which the list ends
  bool running_ = false, listing_ = false;
  Bytes key_;
  WorkList list_;
  std::deque<Known> known_;         // the newest first
  std::deque<std::uint64_t> seen_;  // hashes of lists that were started once
  RepeatUse use_;
};

}  // namespace quaver::cuda
