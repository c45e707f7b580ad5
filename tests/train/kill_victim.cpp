/// The program that kill_test.cpp kills: `kill_victim FOLDER RUN` trains a micro model on FOLDER/text into RUN, saving
/// after every step. Prints "listening" when SIGTERM stops it in order, and "saved N" when the checkpoint of step N is durable.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>

#include "kill_victim.h"
#include "quaver/error.h"
#include "train/training_run.h"

namespace quaver {
namespace {

volatile std::sig_atomic_t terminated = 0;

class Announcer : public TrainingObserver {
 public:
  void saved(const SaveReport& report) override {
    if (!report.error.empty()) return;
    fmt::print("saved {}\n", report.step);
    std::fflush(stdout);
  }
  bool stop_requested() override { return terminated != 0; }
};

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) try {
  std::signal(SIGTERM, [](int) { quaver::terminated = 1; });
  fmt::print("listening\n");
  std::fflush(stdout);
  if (argc != 3) return 2;
  quaver::Announcer announcer;
  return quaver::run_training(quaver::victim_config(argv[1], argv[2]), announcer).stopped ? 75 : 0;
} catch (const quaver::Error& error) {
  fmt::print("{}\n", error.what());
  return error.exit_code();
}
