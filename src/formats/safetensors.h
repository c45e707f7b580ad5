/// The safetensors format: named arrays in one file.
///
/// 8 bytes: header length N, little-endian; N bytes: a JSON object {name: {"dtype", "shape", "data_offsets":
/// [begin, end]}, "__metadata__": {string: string}}; then the arrays' bytes, which the offsets cover without
/// gap or overlap.
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "quaver/tensor.h"

namespace quaver {

/// An array in host memory, row-major, little-endian.
struct NamedArray {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;
};

struct Safetensors {
  std::vector<NamedArray> arrays;  ///< in order of their offsets
  std::map<std::string, std::string> metadata;

  /// The array of that name, or null.
  const NamedArray* find(const std::string& name) const;
};

/// Longest header accepted, as in the format's own implementation.
constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

/// Reads a whole file. Strict: anything that departs from the format is an Error(data) with the file and the
/// reason.
Safetensors read_safetensors(const std::string& path);

/// Reads the metadata and every array's name, type and shape, but leaves `bytes` empty. As strict as
/// `read_safetensors`.
Safetensors read_safetensors_header(const std::string& path);

/// An array inside a mapped file. Trap: the format does not align arrays, so that `bytes` may begin anywhere;
/// copy elements out (memcpy) instead of casting the pointer.
struct MappedArray {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::span<const std::byte> bytes;
};

/// A file whose arrays are looked at where they lie: only what is touched is read. As strict as
/// `read_safetensors`; what base/mapped_file.h says about files that shrink holds.
class MappedSafetensors {
 public:
  explicit MappedSafetensors(const std::string& path);
  const std::vector<MappedArray>& arrays() const { return arrays_; }  ///< in order of their offsets
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  MappedFile file_;
  std::vector<MappedArray> arrays_;
  std::map<std::string, std::string> metadata_;
};

/// The bytes of a file of these arrays that come before the arrays' own. Throws Error(usage) when bytes do not
/// fit a shape or a name occurs twice.
std::string safetensors_preamble(std::span<const NamedArray> arrays,
                                 const std::map<std::string, std::string>& metadata);

/// Writes arrays in the given order, atomically (base/files.h). Throws Error(usage) when bytes do not fit a
/// shape or a name occurs twice, and Error(failure) when the file cannot be written.
void write_safetensors(const std::string& path, std::span<const NamedArray> arrays,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace quaver
