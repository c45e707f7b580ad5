/// Expecting quaver::Error.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "quaver/error.h"

namespace quaver {

/// The message of the Error of `kind` that `action` must throw.
template <typename Action>
std::string error_message(ErrorKind kind, Action action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace quaver
