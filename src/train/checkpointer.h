/// Saves checkpoints in the background, one at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <optional>
#include <string>

#include "base/file_system.h"
#include "train/checkpoint.h"

namespace quaver {

/// One save, when it is over.
struct SaveReport {
  std::int64_t step = 0;
  std::uint64_t bytes = 0;
  double blocking_seconds = 0;  ///< training stood still: waiting for the save before, and the snapshot
  double seconds = 0;           ///< until everything was durable, beside training
  std::string error;            ///< why nothing was saved; empty: the checkpoint is durable
};

class Checkpointer {
 public:
  /// Saves to `run`/checkpoints, keeping the newest `keep`, and makes each the model of the run. `before` makes
  /// durable what a checkpoint must not be ahead of.
  Checkpointer(FileSystem& files, std::string run, std::int64_t keep, std::function<void()> before);
  /// Waits for the save in progress.
  ~Checkpointer();
  Checkpointer(const Checkpointer&) = delete;
  Checkpointer& operator=(const Checkpointer&) = delete;

  bool busy() const { return saving_.valid(); }
  /// Waits for a save in progress, if there is one, takes a snapshot and begins to save it. Returns the report of
  /// the save it waited for.
  std::optional<SaveReport> begin(Trainer& trainer, const RunProgress& progress);
  /// The report of a save that is over and was not reported yet.
  std::optional<SaveReport> poll();
  /// The same, having waited for it.
  std::optional<SaveReport> wait();

 private:
  SaveReport save(const Snapshot& snapshot, double blocking_seconds);

  FileSystem& files_;
  std::string run_;
  std::int64_t keep_;
  std::function<void()> before_;
  std::future<SaveReport> saving_;
};

}  // namespace quaver
