#include "ops/cuda/work_queue.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>

namespace quaver::cuda {

void WorkQueue::fail_padded(const char* name) {
  throw std::logic_error(std::string("a kernel's argument has padding: ") + name);
}

void WorkQueue::start_list() {
  ++use_.direct;
  list_.start();
}

void WorkQueue::stop_listing(const std::string& reason) {
  if (!listing_) return;
  use_.why_direct = reason;
  listing_ = false;
  if (!list_.empty()) start_list();
  list_.clear();
  key_.clear();
}

void WorkQueue::run(const std::function<void()>& work) {
  if (running_) return work();
  running_ = listing_ = true;
  length_ = first_;
  try {
    work();
  } catch (...) {
    // As far as it came, as without a list.
    running_ = false;
    stop_listing("an exception");
    throw;
  }
  running_ = false;
  if (listing_ && !list_.empty()) end_list();
  listing_ = false;
}

void WorkQueue::end_list() {
  listing_ = false;  // what is started may not be listed again
  start_or_replay();
  list_.clear();
  key_.clear();
  length_ = std::min(2 * length_, most_);
  listing_ = running_;
}

/// Whether a list with this key was started once; from now on it was.
bool WorkQueue::was_seen() {
  const std::uint64_t hash =
      std::hash<std::string_view>()({reinterpret_cast<const char*>(key_.data()), key_.size()});
  if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return true;
  seen_.push_front(hash);
  if (seen_.size() > kMostSeen) seen_.pop_back();
  return false;
}

void WorkQueue::start_or_replay() {
  // Other lists differ early, so there is no hash to compare first. Not ==, which compares std::byte by std::byte.
  auto known = std::find_if(known_.begin(), known_.end(), [&](const Known& k) {
    return k.key.size() == key_.size() && std::memcmp(k.key.data(), key_.data(), key_.size()) == 0;
  });
  if (known == known_.end()) {
    // The first time starts directly: kernels are loaded then, which a recording must not.
    if (!was_seen()) {
      use_.why_direct = "operations met for the first time";
      return start_list();
    }
    known_.push_front({key_, record_(list_)});
    if (known_.size() > kMostRecordings) known_.pop_back();
    known = known_.begin();
    if (known->recorded.recording) ++use_.recorded;
  }
  if (!known->recorded.recording) {
    use_.why_direct = known->recorded.why_not;
    return start_list();
  }
  known->recorded.recording->replay();
  ++use_.replayed;
}

}  // namespace quaver::cuda
