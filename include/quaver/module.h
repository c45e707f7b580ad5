/// What all modules share: parameters, names, and one visitor that serves the optimizer, checkpoints and
/// `inspect`.
///
/// `forward` returns what `backward` needs in an explicit struct named Saved: there is no tape and no hidden
/// graph.
#pragma once

#include <cstdint>
#include <string>

#include "quaver/tensor.h"

namespace quaver {

class Backend;
class Linear;

/// A trained tensor: master and gradient.
struct Parameter {
  Tensor value;               ///< f32; a matrix may be bf16 where the backend has AdamW for that
  Tensor gradient;            ///< f32, same shape; its content counts only when `has_gradient`
  bool has_gradient = false;  ///< set by the first backward after `clear_gradient`
  std::uint64_t version =
      1;  ///< whoever writes `value` increments it: casts of the weight are cached per version

  /// Allocates value and gradient, both f32 and uninitialised.
  Parameter(Backend& backend, Shape shape);

  /// The gradient, zero-filled if nothing was accumulated yet: for operations that only add.
  const Tensor& accumulated_gradient(Backend& backend);
  /// Marks the gradient as written, and says whether there was one to add to.
  bool begin_accumulation();
  void clear_gradient() { has_gradient = false; }
};

/// Called for everything a module consists of, in a fixed order; names are dotted paths such as
/// "blocks.0.mlp.up_proj.weight".
class ModuleVisitor {
 public:
  virtual ~ModuleVisitor() = default;
  virtual void parameter(const std::string& /*name*/, Parameter& /*parameter*/) {}
  virtual void linear(const std::string& /*name*/, Linear& /*linear*/) {}
};

class Module {
 public:
  virtual ~Module() = default;
  /// Visits this module under `name` and its children under "name.child".
  virtual void visit(const std::string& name, ModuleVisitor& visitor) = 0;
};

/// "parent.child", or "child" when the parent has no name.
std::string join_names(const std::string& parent, const std::string& child);

}  // namespace quaver
