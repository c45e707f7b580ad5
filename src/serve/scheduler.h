/// Requests of many threads on one model: continuous batching in a thread of its own.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "generate/batch_generator.h"

namespace quaver {

/// The texts of one client, between the scheduler and the thread that answers. Thread-safe.
class Completion {
 public:
  struct Delivery {
    std::size_t text = 0;  ///< index in the request
    GenerationEvent event;
  };

  explicit Completion(std::vector<GenerationRequest> texts)
      : texts_(std::move(texts)), wanted_(texts_.size(), true) {}

  /// What has come since the last call; waits for it until the deadline at most.
  std::vector<Delivery> wait_until(std::chrono::steady_clock::time_point deadline);
  /// Nothing more of this text is wanted: its place becomes free with the next step.
  void end(std::size_t text);
  /// Likewise for all.
  void cancel();

 private:
  friend class Scheduler;
  void deliver(Delivery delivery);
  bool wanted(std::size_t text);

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<GenerationRequest> texts_;
  std::vector<bool> wanted_;
  std::vector<Delivery> deliveries_;
};

class Scheduler {
 public:
  struct Options {
    std::int64_t max_batch = 16;  ///< texts that are continued at once
    std::int64_t queue = 64;      ///< requests that may wait for a place
    std::int64_t vocab = 0;       ///< as in BatchGenerator
  };
  /// The model and the context must outlive it; no other thread may use them meanwhile.
  Scheduler(LanguageModel& model, Context& context, std::optional<Recipe> recipe, const Options& options);
  ~Scheduler();  ///< texts that are not finished get no more events
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// Null when the queue is full. Texts get places in the order of submission.
  std::shared_ptr<Completion> submit(std::vector<GenerationRequest> texts);

  struct Load {
    std::int64_t texts = 0;    ///< that have a place
    std::int64_t waiting = 0;  ///< requests with texts that have none
  };
  Load load();

 private:
  struct Waiting {
    std::shared_ptr<Completion> completion;
    std::size_t next = 0;  // text without a place
  };
  struct Running {
    std::shared_ptr<Completion> completion;
    std::size_t text = 0;
  };

  void run();
  void drop_unwanted();
  void admit();
  void step();

  BatchGenerator generator_;  // of the thread alone
  std::map<std::uint64_t, Running> running_;
  Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Waiting> waiting_;
  std::int64_t texts_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace quaver
