#include "support/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"

namespace quaver {

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const std::string& output_file) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output_file.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) fail(ErrorKind::failure, "{}: cannot start: {}", arguments[0], std::strerror(error));
}

ChildProcess::~ChildProcess() {
  signal(SIGKILL);
  wait();
}

bool ChildProcess::running() {
  int status = 0;
  if (!over_ && ::waitpid(pid_, &status, WNOHANG) == pid_) note(status);
  return !over_;
}

void ChildProcess::signal(int number) {
  if (running()) ::kill(pid_, number);
}

std::optional<int> ChildProcess::wait() {
  int status = 0;
  if (!over_ && ::waitpid(pid_, &status, 0) == pid_) note(status);
  return exit_code_;
}

void ChildProcess::note(int status) {
  over_ = true;
  if (WIFEXITED(status)) exit_code_ = WEXITSTATUS(status);
}

}  // namespace quaver
