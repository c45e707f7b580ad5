/// Running the real program.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "base/files.h"
#include "support/temporary_folder.h"

namespace quaver {

struct ProgramResult {
  int exit_code = -1;
  std::string out, err;
};

inline std::string shell_quoted(const std::string& word) {
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

/// Runs `quaver` with these arguments, after the shell commands of `prelude`.
inline ProgramResult run_program(const std::vector<std::string>& arguments, const std::string& prelude = "") {
  const TemporaryFolder folder;
  const std::string out = folder.write("out", ""), err = folder.write("err", "");
  std::string command = prelude + (prelude.empty() ? "" : "; ") + "exec " + shell_quoted(QUAVER_PROGRAM);
  for (const std::string& argument : arguments) command += " " + shell_quoted(argument);
  command = "(" + command + ") > " + shell_quoted(out) + " 2> " + shell_quoted(err) + " < /dev/null";
  const int status = std::system(command.c_str());
  EXPECT_TRUE(WIFEXITED(status)) << command;
  return {WEXITSTATUS(status), read_file(out), read_file(err)};
}

}  // namespace quaver
