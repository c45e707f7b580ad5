/// What every fuzz target defines: libFuzzer calls it, and so does replay.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

/// Must return for any bytes. Aborts, or trips a sanitizer, when the code under test breaks a promise.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
