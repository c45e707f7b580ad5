/// Choosing where operations run, and moving numbers in and out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quaver/tensor.h"

namespace quaver {

/// All operations on one device. Modules hold a reference to one; a program names it and passes it on.
class Backend;

/// Bytes of the backend's arena: handed out now, handed out at the worst moment, and held from the system.
struct MemoryUse {
  std::int64_t in_use = 0, peak = 0, reserved = 0;
};

/// Makes a backend by name: "reference" (plain scalar code: the specification), "cpu" (vectorised, the same
/// bits where the contract says so), "cuda". `threads` = 0 uses every processor. Throws Error(usage) for an
/// unknown name, or with the reason when the backend is not part of this build.
std::shared_ptr<Backend> make_backend(const std::string& name, int threads = 0);

/// The names `make_backend` knows, built in or not.
std::vector<std::string> backend_names();

/// A tensor of `dtype` (f32 or bf16) on the backend's device with these values, each rounded once.
Tensor upload(Backend& backend, std::span<const float> values, Shape shape, DType dtype = DType::f32);
Tensor upload(Backend& backend, std::span<const std::int32_t> values, Shape shape);

/// The values of a tensor of any type but i64 and u8 as floats (exact), in row-major order whatever its
/// strides.
std::vector<float> download(Backend& backend, const Tensor& tensor);

}  // namespace quaver
