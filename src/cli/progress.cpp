#include "cli/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "cli/format.h"
#include "train/fp8_policy.h"

namespace quaver::cli {
namespace {

// A signal handler can reach nothing else.
volatile std::sig_atomic_t stop_signal = 0;
volatile std::sig_atomic_t save_signal = 0;

void remember_signal(int number) {
  stop_signal = number;
  std::signal(number, SIG_DFL);
}

void remember_save_signal(int number) {
  save_signal = number;
}

double share(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::size_t terminal_width() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  return known ? size.ws_col : 80;
}

/// "0", "0.02%": a count that is not zero never reads as zero.
std::string percent(std::int64_t part, std::int64_t whole) {
  const double value = 100 * share(part, whole);
  if (part == 0) return "0";
  return value < 0.01 ? "<0.01%" : fmt::format("{:.2f}%", value);
}

}  // namespace

std::string progress_line(const StepReport& report, std::int64_t steps, double flops_per_token, double peak,
                          double eta_seconds, bool fp8) {
  std::string line =
      fmt::format("step {}/{} {:.1f}% | loss {:.4f} | bpb {} | |g| {:.2f} | lr {} | {} tok/s", report.step,
                  steps, 100 * share(report.step, steps), report.loss.mean(), bpb_text(report.loss, 2),
                  report.gradient_norm, scientific(report.lr), with_prefix(report.tokens_per_second()));
  if (peak > 0)
    line += fmt::format(" | mfu {:.0f}%", 100 * report.tokens_per_second() * flops_per_token / peak);
  if (fp8) {
    line += fmt::format(" | fp8 sat {} uf {}", percent(report.casts.saturated, report.casts.cast),
                        percent(report.casts.underflowed, report.casts.cast));
  }
  return line + fmt::format(" | {:.0f} ms | eta {}", report.seconds * 1e3, duration(eta_seconds));
}

Progress::Progress(const RunConfig& config, double peak, bool strict_fp8)
    : config_(config), peak_(peak), terminal_(::isatty(STDERR_FILENO) == 1), strict_fp8_(strict_fp8) {}

Progress::~Progress() {
  if (line_is_open_) std::fputc('\n', stderr);
}

void Progress::started(const RunStart& start) {
  flops_per_token_ = start.flops_per_token;
  show(fmt::format("{} | {} | {} parameters | {} training tokens, {} for validation", start.backend,
                   name_of(config_.precision), with_prefix(static_cast<double>(start.parameters)),
                   with_prefix(static_cast<double>(start.train_tokens)),
                   with_prefix(static_cast<double>(start.validation_tokens))),
       true);
  for (const std::string& line : describe(start.measured)) show(line, true);
  show_origin(start);
}

void Progress::show_origin(const RunStart& start) {
  for (const DamagedCheckpoint& damaged : start.damaged) {
    show(fmt::format("passed over {}, set aside as {}.damaged: {}", damaged.path, damaged.path,
                     damaged.reason),
         true);
  }
  if (!start.checkpoint.empty())
    show(fmt::format("resuming after step {} from {}", start.step, start.checkpoint), true);
}

void Progress::gradients_ready(std::int64_t /*step*/, LanguageModel& model) {
  if (strict_fp8_) require_strict_fp8(model);
}

void Progress::stepped(const StepReport& report) {
  const std::int64_t steps = config_.train.steps;
  constexpr double kWeight = 0.1;
  seconds_per_step_ =
      report.step <= 2 ? report.seconds : (1 - kWeight) * seconds_per_step_ + kWeight * report.seconds;
  const std::string line = progress_line(report, steps, flops_per_token_, peak_,
                                         static_cast<double>(steps - report.step) * seconds_per_step_,
                                         config_.precision == Precision::fp8);
  const std::int64_t log_every = config_.train.log_every;
  const bool logged =
      report.step == 1 || report.step == steps || (log_every > 0 && report.step % log_every == 0);
  if (terminal_ || logged) show(line, !terminal_ || report.step == steps);
  if (!report.skipped.empty())
    show(fmt::format("step {}/{} | skipped, nothing was updated: {}", report.step, steps, report.skipped),
         true);
  if (report.validation) {
    show(fmt::format("step {}/{} | validation loss {:.4f} | bpb {}", report.step, steps,
                     report.validation->mean(), bpb_text(*report.validation, 4)),
         true);
  }
}

void Progress::saved(const SaveReport& report) {
  if (!report.error.empty()) {
    show(fmt::format("step {}/{} | not saved: {}", report.step, config_.train.steps, report.error), true);
    return;
  }
  show(fmt::format("step {}/{} | saved {} in {:.0f} ms; training stood still for {:.0f} ms", report.step,
                   config_.train.steps, bytes(static_cast<std::int64_t>(report.bytes)), report.seconds * 1e3,
                   report.blocking_seconds * 1e3),
       true);
}

bool Progress::save_requested() {
  const bool requested = save_signal != 0;
  save_signal = 0;
  return requested;
}

bool Progress::stop_requested() {
  return stop_signal != 0;
}

void Progress::show(const std::string& line, bool keep) {
  // On a terminal the line replaces the last one; what is left of a longer one is erased. A live line that wrapped could
  // not be replaced.
  const std::string shown = terminal_ && !keep ? line.substr(0, terminal_width() - 1) : line;
  fmt::print(stderr, "{}{}{}", terminal_ ? "\r\033[K" : "", shown, keep ? "\n" : "");
  std::fflush(stderr);
  line_is_open_ = !keep;
}

void catch_signals() {
  std::signal(SIGINT, remember_signal);
  std::signal(SIGTERM, remember_signal);
  std::signal(SIGUSR1, remember_save_signal);
}

}  // namespace quaver::cli
