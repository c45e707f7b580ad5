/// AdamW of a tensor whose value or moments are not f32.
#pragma once

#include <array>
#include <cstdint>

#include "ops/cpu/code_formats.h"
#include "ops/cpu/kernels/adamw.h"
#include "quaver/backend.h"

namespace quaver::cpu {

struct Kernels;

/// Works on chunks that a core's cache holds: widened, stepped in FP32, rounded back.
class StoredStep {
 public:
  /// All must outlive it but `step`.
  StoredStep(const Kernels& kernels, const AdamWFactors& factors, const AdamWStep& step,
             const AdamWTensor& tensor);

  /// All f32: the kernel's own step does.
  static bool is_plain(const AdamWTensor& tensor);

  /// Elements [begin, end). `begin` is a multiple of kMomentBlock. Pieces may run on different threads.
  void run(std::int64_t begin, std::int64_t end) const;

 private:
  struct Array {
    Tensor data, scales;
    CastNoise noise;
    bool roots = false;  ///< codes are those of square roots
  };
  struct Chunk;

  /// Where the FP32 numbers are: `scratch`, or their own place.
  float* widen(const Array& array, const Chunk& chunk, float* scratch) const;
  /// What `widen` gave goes back; overwrites it.
  void store(const Array& array, const Chunk& chunk, float* values) const;
  void store_codes(const Array& array, const Chunk& chunk, float* values, const float* uniforms) const;

  const Kernels& kernels_;
  const AdamWFactors& factors_;
  const AdamWTensor& tensor_;
  Array value_, m_, v_;
  CodeFormat format_;
  std::array<float, 256> numbers_;
};

}  // namespace quaver::cpu
