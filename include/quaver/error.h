/// Errors of the library: one exception type that carries the kind, from which the program takes its exit
/// code.
#pragma once

#include <stdexcept>
#include <string>

namespace quaver {

/// What went wrong, by who can mend it. The values are the exit codes of `quaver`.
enum class ErrorKind {
  failure = 1,     ///< the machine: disk full, file not writable, out of memory
  usage = 2,       ///< the call or the configuration: unknown key, wrong type, out of range, wrong shape
  data = 3,        ///< the input: missing, unreadable, empty or damaged file
  non_finite = 4,  ///< a loss or gradient that is not finite; weights are untouched
};

/// The one exception of Quaver. `what()` says what happened, where, what was expected and found, and a hint.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }

 private:
  ErrorKind kind_;
};

}  // namespace quaver
