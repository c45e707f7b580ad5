#include "train/checkpointer.h"

#include <chrono>
#include <exception>
#include <memory>
#include <utility>

#include "base/check.h"
#include "train/run_folder.h"

namespace quaver {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Saves, or says what a failure means for the run.
void save_checkpoint(CheckpointStore& store, const Snapshot& snapshot) try {
  store.save(snapshot.step(), snapshot.files());
} catch (const Error& error) {
  fail(error.kind(),
       "{}; the checkpoint of step {} needs {} bytes, the ones before it are kept. Hint: make room, or lower "
       "train.keep_checkpoints",
       error.what(), snapshot.step(), snapshot.bytes());
}

}  // namespace

Checkpointer::Checkpointer(FileSystem& files, std::string run, std::int64_t keep,
                           std::function<void()> before)
    : files_(files), run_(std::move(run)), keep_(keep), before_(std::move(before)) {}

Checkpointer::~Checkpointer() {
  if (saving_.valid()) saving_.wait();
}

std::optional<SaveReport> Checkpointer::begin(Trainer& trainer, const RunProgress& progress) {
  const auto begin = Clock::now();
  std::optional<SaveReport> earlier = wait();
  auto snapshot = std::make_shared<const Snapshot>(trainer, progress);
  const double blocking = seconds_since(begin);
  saving_ = std::async(std::launch::async, [this, blocking, snapshot] { return save(*snapshot, blocking); });
  return earlier;
}

std::optional<SaveReport> Checkpointer::poll() {
  const bool over = saving_.valid() && saving_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  return over ? wait() : std::nullopt;
}

std::optional<SaveReport> Checkpointer::wait() {
  if (!saving_.valid()) return std::nullopt;
  return saving_.get();
}

SaveReport Checkpointer::save(const Snapshot& snapshot, double blocking_seconds) {
  const auto begin = Clock::now();
  SaveReport report{snapshot.step(), snapshot.bytes(), blocking_seconds, 0, ""};
  try {
    before_();
    CheckpointStore store(files_, checkpoints_path(run_));
    save_checkpoint(store, snapshot);
    store.keep_newest(keep_);
    publish_model(store.path_of(snapshot.step()), run_);
  } catch (const std::exception& error) {
    report.error = error.what();
  }
  report.seconds = seconds_since(begin);
  return report;
}

}  // namespace quaver
