/// A program started beside the test, which may be killed.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace quaver {

class ChildProcess {
 public:
  /// Starts `arguments[0]` with its output going to `output_file`.
  ChildProcess(const std::vector<std::string>& arguments, const std::string& output_file);
  /// Kills it, if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  bool running();
  /// Does nothing once it has ended.
  void signal(int number);
  /// Waits for its end. Its exit code; nothing: a signal ended it.
  std::optional<int> wait();

 private:
  void note(int status);

  pid_t pid_ = -1;
  bool over_ = false;
  std::optional<int> exit_code_;
};

}  // namespace quaver
