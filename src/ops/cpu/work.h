/// Cutting the work of an operation into pieces by shape alone, and handing tensors to kernels.
#pragma once

#include <vector>

#include "ops/cpu/kernels/rows.h"
#include "quaver/backend.h"

namespace quaver::cpu {

Real real_of(const Tensor& tensor);
/// A matrix, or null for an absent tensor.
ConstRows const_rows(const Tensor& matrix);
Rows rows_of(const Tensor& matrix);

/// The address of an optional vector's first element, or null.
template <typename T>
T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.data<T>() : nullptr;
}

/// A rectangle of a matrix.
struct Piece {
  std::int64_t index = 0;
  std::int64_t row = 0, col = 0;
  Extent extent;
};

/// FP8 bytes of which nobody finds many in a cache again: they are written past the caches. Producers that compute more than they
/// move gain by it since they fetch their operands ahead (kernels/simd_memory.h); before, they became slower.
constexpr std::int64_t kStreamedBytes = std::int64_t{8} << 20;

/// Pieces of about 2^15 elements: enough work to be worth a thread, small enough for a core's cache. A matrix
/// of one piece runs on the calling thread.
class Pieces {
 public:
  /// Whole rows.
  static Pieces of_rows(Extent matrix);
  /// Whole rows; or, when all the operands are contiguous, stretches of the matrix as one long row: fewer
  /// tails.
  static Pieces of_elements(Extent matrix, std::initializer_list<const Tensor*> operands);

  std::int64_t count() const;
  Piece at(std::int64_t index) const;

 private:
  Extent matrix_;
  Extent block_;
};

/// The part of a matrix that a piece covers.
ConstRows part(const ConstRows& rows, const Piece& piece, Real real);
Rows part(const Rows& rows, const Piece& piece, Real real);

/// An Output while its pieces are produced, possibly by several threads.
class Production {
 public:
  Production(const Output& output, const Pieces& pieces) : Production(output, pieces.count()) {}
  Production(const Output& output, std::int64_t pieces);

  /// Where the kernel stores `piece`.
  ProducerRows at(const Piece& piece, Real real);

  /// After all pieces: raises amax, adds to the counters, writes scale_inv and the transposed bytes.
  void finish();

 private:
  const Output& output_;
  Rows values_;
  std::uint8_t* bytes_ = nullptr;
  float scale_ = 1;
  std::vector<CastCounts> counts_;
};

}  // namespace quaver::cpu
