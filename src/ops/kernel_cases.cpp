#include <fmt/format.h>

#include "ops/kernel_benchmark.h"

namespace quaver {
namespace {

// gated-124m.
constexpr std::int64_t kWidth = 768, kFeedForward = 2048, kHeads = 12, kHeadDim = 64, kVocab = 32768;

using Run = std::function<void()>;

Tensor random_real(Backend& backend, DType dtype, Shape shape, std::uint64_t stream) {
  const Tensor values = backend.allocate(DType::f32, shape);
  backend.fill_normal(values, 0, 1, 1, stream);
  if (dtype == DType::f32) return values;
  const Tensor rounded = backend.allocate(dtype, shape);
  backend.convert(values, rounded);
  return rounded;
}

Tensor filled(Backend& backend, DType dtype, Shape shape, double value) {
  const Tensor tensor = backend.allocate(dtype, shape);
  backend.fill(tensor, value);
  return tensor;
}

Output real_output(Backend& backend, std::int64_t rows, std::int64_t cols) {
  return {filled(backend, DType::bf16, {rows, cols}, 0), {}, {}};
}

Output fp8_output(Backend& backend, std::int64_t rows, std::int64_t cols, DType format, double scale = 64) {
  Output output;
  output.quantized = {backend.allocate(format, {rows, cols}),
                      backend.needs_transposed_fp8() ? backend.allocate(format, {cols, rows}) : Tensor(),
                      backend.allocate(DType::f32, {1})};
  output.quantizer = {format, filled(backend, DType::f32, {1}, scale), filled(backend, DType::f32, {1}, 0),
                      filled(backend, DType::i64, {kCastCounters}, 0)};
  return output;
}

Tensor indices(Backend& backend, std::int64_t count, std::int64_t step, std::int64_t limit) {
  std::vector<std::int32_t> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<std::int32_t>(i * step % limit));
  return upload(backend, values, {count});
}

GemmOperand gemm_operand(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols,
                         std::uint64_t stream) {
  const Tensor real = random_real(backend, DType::bf16, {rows, cols}, stream);
  if (!is_fp8(dtype)) return real;
  const Output cast = fp8_output(backend, rows, cols, dtype);
  backend.cast(real, cast);
  return cast.quantized;
}

/// Collects cases of [tokens, cols] matrices; `bytes` is per element of the matrix, of which `fp8` are FP8 results.
class Cases {
 public:
  void add(const char* name, std::int64_t rows, std::int64_t cols, double bytes,
           std::function<Run(Backend&, std::int64_t, std::int64_t)> prepare, double fp8 = 0) {
    const auto elements = static_cast<double>(rows * cols);
    cases_.push_back({name, fmt::format("{} x {}", rows, cols), bytes * elements, fp8 * elements, 0,
                      [=](Backend& backend) { return prepare(backend, rows, cols); }});
  }
  void add(KernelCase kernel) { cases_.push_back(std::move(kernel)); }
  std::vector<KernelCase> take() { return std::move(cases_); }

 private:
  std::vector<KernelCase> cases_;
};

void add_casts(Cases& cases, std::int64_t tokens) {
  for (DType format : {DType::e4m3, DType::e5m2}) {
    cases.add(
        format == DType::e4m3 ? "cast bf16 to e4m3" : "cast bf16 to e5m2", tokens, kFeedForward, 3,
        [=](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, x = random_real(b, DType::bf16, {m, n}, 1), y = fp8_output(b, m, n, format)] {
            b.cast(x, y);
          };
        },
        1);
  }
  for (auto [name, from, to] : {std::tuple{"convert f32 to bf16", DType::f32, DType::bf16},
                                std::tuple{"convert bf16 to f32", DType::bf16, DType::f32}}) {
    cases.add(
        name, tokens, kWidth, 6, [from = from, to = to](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, x = random_real(b, from, {m, n}, 1), y = filled(b, to, {m, n}, 0)] { b.convert(x, y); };
        });
  }
}

/// What fprop and wgrad of a recipe in blocks read of x: codes in blocks along its rows, and along its columns.
void add_block_casts(Cases& cases, const char* name, const Recipe& recipe, std::int64_t tokens) {
  const OperandCast rows = cast_of(recipe, OperandRole::input, Gemm::fprop),
                    columns = cast_of(recipe, OperandRole::input, Gemm::wgrad);
  const double elements = static_cast<double>(tokens) * kFeedForward;
  const auto prepare = [=](Backend& b) -> Run {
    const auto cast = [&](const OperandCast& how) {
      return allocate_quantized(b, how, tokens, kFeedForward);
    };
    return
        [&b, rows, columns, x = random_real(b, DType::bf16, {tokens, kFeedForward}, 1), by_rows = cast(rows),
         by_columns = cast(columns), counters = filled(b, DType::i64, {kCastCounters}, 0)] {
          b.quantize_both(x, {rows, {}, by_rows}, {columns, {}, by_columns}, counters);
        };
  };
  cases.add({name, fmt::format("{} x {}", tokens, kFeedForward), 4 * elements, 0, 0, prepare,
             [rows](const Backend& b) { return b.why_no_cast(rows).empty(); }});
}

/// What a weight costs once an optimizer step, and every product of its Linear.
void add_products(Cases& cases, std::int64_t tokens) {
  cases.add(
      "cast f32 to e4m3, a weight", kFeedForward, kWidth, 5,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        return [&b, x = random_real(b, DType::f32, {m, n}, 1), y = fp8_output(b, m, n, DType::e4m3)] {
          b.cast(x, y);
        };
      },
      1);
  for (DType type : {DType::e4m3, DType::bf16}) {
    for (Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
      const auto prepare = [=](Backend& b) -> Run {
        const DType gradient = is_fp8(type) ? DType::e5m2 : type;
        const bool forward = kind == Gemm::fprop;
        const GemmOperand left = forward ? gemm_operand(b, type, tokens, kWidth, 1)
                                         : gemm_operand(b, gradient, tokens, kFeedForward, 1);
        const GemmOperand right = kind == Gemm::wgrad ? gemm_operand(b, type, tokens, kWidth, 2)
                                                      : gemm_operand(b, type, kFeedForward, kWidth, 2);
        const Tensor out = kind == Gemm::wgrad
                               ? filled(b, DType::f32, {kFeedForward, kWidth}, 0)
                               : b.allocate(DType::bf16, {tokens, forward ? kFeedForward : kWidth});
        return [&b, kind, left, right, out] { b.gemm(kind, left, right, {}, false, out); };
      };
      const double size = is_fp8(type) ? 1 : 2, m = static_cast<double>(tokens);
      const double activations = m * kWidth, gradients = m * kFeedForward, weight = kWidth * kFeedForward;
      const double bytes = kind == Gemm::fprop   ? size * (activations + weight) + 2 * gradients
                           : kind == Gemm::dgrad ? size * (gradients + weight) + 2 * activations
                                                 : size * (gradients + activations) + 4 * weight;
      cases.add({fmt::format("gemm {} {}", name_of(kind), name_of(type)),
                 fmt::format("{} x {}, {}", tokens, kWidth, kFeedForward), bytes, 0,
                 2 * activations * kFeedForward, prepare});
    }
  }
}

void add_attention(Cases& cases, std::int64_t tokens) {
  constexpr std::int64_t kKvHeads = 3;
  for (std::int64_t context : {1024, 2048}) {
    if (tokens < context) continue;
    const std::int64_t batch = tokens / context, rows = batch * context;
    const AttentionShape shape{batch, context, context, kHeads, kKvHeads, kHeadDim, 0.125f};
    const auto length = static_cast<double>(context);
    const double product = static_cast<double>(batch * kWidth) * length * (length + 1);
    const double queries = 2.0 * static_cast<double>(rows * kWidth), keys = queries * kKvHeads / kHeads,
                 sums = 4.0 * static_cast<double>(rows * kHeads);
    const auto prepare = [=](Backend& b, bool backward) -> Run {
      const auto matrix = [&](std::int64_t heads, std::uint64_t stream) {
        return random_real(b, DType::bf16, {rows, heads * kHeadDim}, stream);
      };
      const Tensor q = matrix(kHeads, 1), k = matrix(kKvHeads, 2), v = matrix(kKvHeads, 3),
                   out = matrix(kHeads, 4), lse = filled(b, DType::f32, {rows, kHeads}, 0);
      if (!backward) return [&b, shape, q, k, v, out, lse] { b.attention(shape, q, k, v, {}, out, lse); };
      b.attention(shape, q, k, v, {}, out, lse);
      return [&b, shape, q, k, v, out, lse, dout = matrix(kHeads, 5), dq = matrix(kHeads, 6),
              dk = matrix(kKvHeads, 7), dv = matrix(kKvHeads, 8)] {
        b.attention_backward(shape, dout, q, k, v, {}, out, lse, dq, dk, dv);
      };
    };
    const std::string sizes = fmt::format("{} x {}", batch, context);
    cases.add({"attention", sizes, 2 * (queries + keys) + sums, 0, 2 * product,
               [=](Backend& b) { return prepare(b, false); }});
    cases.add({"attention backward", sizes, 4 * (queries + keys) + sums, 0, 5 * product,
               [=](Backend& b) { return prepare(b, true); }});
  }
}

void add_norms(Cases& cases, std::int64_t tokens) {
  for (bool fp8 : {false, true}) {
    const auto output = [=](Backend& b, std::int64_t m, std::int64_t n) {
      return fp8 ? fp8_output(b, m, n, DType::e4m3) : real_output(b, m, n);
    };
    cases.add(
        fp8 ? "rms_norm, e4m3" : "rms_norm", tokens, kWidth, fp8 ? 3 : 4,
        [=](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, x = random_real(b, DType::bf16, {m, n}, 1), g = filled(b, DType::f32, {n}, 1),
                  y = output(b, m, n), r = filled(b, DType::f32, {m}, 0)] { b.rms_norm(x, g, 1e-6f, y, r); };
        },
        fp8);
    cases.add(
        fp8 ? "layer_norm, e4m3" : "layer_norm", tokens, kWidth, fp8 ? 3 : 4,
        [=](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return
              [&b, x = random_real(b, DType::bf16, {m, n}, 1), g = filled(b, DType::f32, {n}, 1),
               c = filled(b, DType::f32, {n}, 0), y = output(b, m, n), mean = filled(b, DType::f32, {m}, 0),
               r = filled(b, DType::f32, {m}, 0)] { b.layer_norm(x, g, c, 1e-6f, y, mean, r); };
        },
        fp8);
  }
  cases.add(
      "add and rms_norm, e4m3", tokens, kWidth, 7,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        return [&b, x = random_real(b, DType::bf16, {m, n}, 1), y = random_real(b, DType::bf16, {m, n}, 2),
                sum = filled(b, DType::bf16, {m, n}, 0), g = filled(b, DType::f32, {n}, 1),
                out = fp8_output(b, m, n, DType::e4m3), r = filled(b, DType::f32, {m}, 0)] {
          b.rms_norm({x, y, sum}, g, 1e-6f, out, r);
        };
      },
      1);
  cases.add("rms_norm_backward", tokens, kWidth, 6, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, dy = random_real(b, DType::bf16, {m, n}, 1), x = random_real(b, DType::bf16, {m, n}, 2),
            g = filled(b, DType::f32, {n}, 1), r = filled(b, DType::f32, {m}, 1),
            dx = filled(b, DType::bf16, {m, n}, 0), dg = filled(b, DType::f32, {n}, 0)] {
      b.rms_norm_backward(dy, x, g, r, false, {dx, {}, {}}, dg);
    };
  });
  cases.add("layer_norm_backward", tokens, kWidth, 6, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, dy = random_real(b, DType::bf16, {m, n}, 1), x = random_real(b, DType::bf16, {m, n}, 2),
            g = filled(b, DType::f32, {n}, 1), mean = filled(b, DType::f32, {m}, 0),
            r = filled(b, DType::f32, {m}, 1), dx = filled(b, DType::bf16, {m, n}, 0),
            dg = filled(b, DType::f32, {n}, 0), db = filled(b, DType::f32, {n}, 0)] {
      b.layer_norm_backward(dy, x, g, mean, r, false, {dx, {}, {}}, dg, db);
    };
  });
}

constexpr std::int64_t kContext = 1024;

HeadTransform head_transform(Backend& b, QkNorm norm, std::int64_t positions) {
  return {.heads = kHeads,
          .head_dim = kHeadDim,
          .norm = norm,
          .gain = norm == QkNorm::none ? Tensor() : filled(b, DType::f32, {kHeadDim}, 1),
          .cosine = filled(b, DType::f32, {positions, kHeadDim / 2}, 0.6),
          .sine = filled(b, DType::f32, {positions, kHeadDim / 2}, 0.8)};
}

/// As the FP8 step runs them: the sum's values and its bytes; rotated and untouched heads, bytes alone; and the gate's.
void add_casting_backwards(Cases& cases, std::int64_t tokens) {
  cases.add(
      "rms_norm_backward, adding, e5m2", tokens, kWidth, 9,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        Output dx = fp8_output(b, m, n, DType::e5m2);
        dx.values = filled(b, DType::bf16, {m, n}, 0);
        return [&b, dy = random_real(b, DType::bf16, {m, n}, 1), x = random_real(b, DType::bf16, {m, n}, 2),
                g = filled(b, DType::f32, {n}, 1), r = filled(b, DType::f32, {m}, 1), dx,
                dg = filled(b, DType::f32, {n}, 0)] { b.rms_norm_backward(dy, x, g, r, true, dx, dg); };
      },
      1);
  cases.add(
      "rotary backward, e5m2", tokens, kWidth, 3,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        HeadTransform t = head_transform(b, QkNorm::none, kContext);
        t.untouched = t.heads / 4, t.heads -= t.untouched;
        return [&b, t, dy = random_real(b, DType::bf16, {m, n}, 1), p = indices(b, m, 1, kContext),
                dx = fp8_output(b, m, n, DType::e5m2)] { b.transform_heads_backward(t, dy, {}, p, dx, {}); };
      },
      1);
  cases.add(
      "gate elementwise backward, e5m2", tokens, kWidth, 9,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        return [&b, dy = random_real(b, DType::bf16, {m, n}, 1), o = random_real(b, DType::bf16, {m, n}, 2),
                g = random_real(b, DType::bf16, {m, n}, 3), d_o = filled(b, DType::bf16, {m, n}, 0),
                dg = fp8_output(b, m, n, DType::e5m2)] {
          b.gate_backward(GateActivation::sigmoid, dy, o, g, d_o, dg, {});
        };
      },
      1);
}

void add_activations(Cases& cases, std::int64_t tokens) {
  for (auto [forward, backward, kind] :
       {std::tuple{"swiglu, e4m3", "swiglu backward, e5m2", Activation::swiglu},
        std::tuple{"geglu, e4m3", "geglu backward, e5m2", Activation::geglu}}) {
    cases.add(
        forward, tokens, kFeedForward, 5,
        [kind = kind](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, kind, g = random_real(b, DType::bf16, {m, n}, 1),
                  u = random_real(b, DType::bf16, {m, n}, 2),
                  h = fp8_output(b, m, n, DType::e4m3)] { b.activation(kind, g, u, h); };
        },
        1);
    cases.add(
        backward, tokens, kFeedForward, 8,
        [kind = kind](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, kind, dh = random_real(b, DType::bf16, {m, n}, 1),
                  g = random_real(b, DType::bf16, {m, n}, 2), u = random_real(b, DType::bf16, {m, n}, 3),
                  dg = fp8_output(b, m, n, DType::e5m2), du = fp8_output(b, m, n, DType::e5m2)] {
            b.activation_backward(kind, dh, g, u, dg, du, {});
          };
        },
        2);
  }
  // As the FP8 step runs it: wgrad's operand is written once more, in the one form that wgrad reads.
  cases.add(
      "swiglu backward, e5m2, and h", tokens, kFeedForward, 9,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        Output h = fp8_output(b, m, n, DType::e4m3);
        h.quantizer.amax = h.quantizer.counters = Tensor();
        if (b.needs_transposed_fp8()) h.quantized.bytes = Tensor();
        return [&b, dh = random_real(b, DType::bf16, {m, n}, 1), g = random_real(b, DType::bf16, {m, n}, 2),
                u = random_real(b, DType::bf16, {m, n}, 3), dg = fp8_output(b, m, n, DType::e5m2),
                du = fp8_output(b, m, n, DType::e5m2),
                h] { b.activation_backward(Activation::swiglu, dh, g, u, dg, du, h); };
      },
      2);
}

void add_gates(Cases& cases, std::int64_t tokens) {
  for (bool headwise : {false, true}) {
    const auto gates = [=](Backend& b, std::int64_t m, std::int64_t n, std::uint64_t stream) {
      return random_real(b, DType::bf16, {m, headwise ? kHeads : n}, stream);
    };
    const double g_bytes = headwise ? 2.0 / kHeadDim : 2.0;
    cases.add(
        headwise ? "gate headwise, e4m3" : "gate elementwise, e4m3", tokens, kWidth, 3 + g_bytes,
        [=](Backend& b, std::int64_t m, std::int64_t n) -> Run {
          return [&b, o = random_real(b, DType::bf16, {m, n}, 1), g = gates(b, m, n, 2),
                  y = fp8_output(b, m, n, DType::e4m3)] { b.gate(GateActivation::sigmoid, o, g, y); };
        },
        1);
    cases.add(headwise ? "gate headwise backward" : "gate elementwise backward", tokens, kWidth,
              6 + 2 * g_bytes, [=](Backend& b, std::int64_t m, std::int64_t n) -> Run {
                return [&b, dy = random_real(b, DType::bf16, {m, n}, 1),
                        o = random_real(b, DType::bf16, {m, n}, 2), g = gates(b, m, n, 3),
                        d_o = filled(b, DType::bf16, {m, n}, 0), dg = gates(b, m, n, 4)] {
                  b.gate_backward(GateActivation::sigmoid, dy, o, g, d_o, {dg, {}, {}}, {});
                };
              });
  }
}

void add_heads(Cases& cases, std::int64_t tokens) {
  for (auto [forward, backward, norm] :
       {std::tuple{"rotary", "rotary backward", QkNorm::none},
        std::tuple{"rotary with QK norm", "rotary with QK norm backward", QkNorm::pre_rope}}) {
    cases.add(forward, tokens, kWidth, 4, [norm = norm](Backend& b, std::int64_t m, std::int64_t n) -> Run {
      return [&b, t = head_transform(b, norm, kContext), x = random_real(b, DType::bf16, {m, n}, 1),
              p = indices(b, m, 1, kContext),
              y = filled(b, DType::bf16, {m, n}, 0)] { b.transform_heads(t, x, p, y); };
    });
    const bool normed = norm != QkNorm::none;
    cases.add(backward, tokens, kWidth, normed ? 6 : 4,
              [norm = norm, normed](Backend& b, std::int64_t m, std::int64_t n) -> Run {
                return
                    [&b, t = head_transform(b, norm, kContext), dy = random_real(b, DType::bf16, {m, n}, 1),
                     x = normed ? random_real(b, DType::bf16, {m, n}, 2) : Tensor(),
                     p = indices(b, m, 1, kContext), dx = filled(b, DType::bf16, {m, n}, 0),
                     dgain = normed ? filled(b, DType::f32, {kHeadDim}, 0) : Tensor()] {
                      b.transform_heads_backward(t, dy, x, p, {dx, {}, {}}, dgain);
                    };
              });
  }
}

void add_model_ends(Cases& cases, std::int64_t tokens) {
  constexpr std::int64_t kScatter = 10007;  // prime: rows far apart, none twice in a row
  cases.add("embedding", tokens, kWidth, 6, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, t = filled(b, DType::f32, {kVocab, n}, 1), i = indices(b, m, kScatter, kVocab),
            y = filled(b, DType::bf16, {m, n}, 0)] { b.embedding(i, t, {}, {}, y); };
  });
  cases.add("embedding backward", tokens, kWidth, 10, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, dt = filled(b, DType::f32, {kVocab, n}, 0), i = indices(b, m, kScatter, kVocab),
            dy = random_real(b, DType::bf16, {m, n}, 1)] { b.embedding_backward(dy, i, {}, dt, {}); };
  });
  constexpr double kLossScale = 0x1p25;  // the gradients below reach 1e-3: as delayed scaling would choose
  cases.add(
      "cross_entropy", tokens / 4, kVocab, 3,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        return [&b, x = random_real(b, DType::bf16, {m, n}, 1), t = indices(b, m, kScatter, n),
                l = filled(b, DType::f32, {m}, 0),
                dx = fp8_output(b, m, n, DType::e5m2, kLossScale)] { b.cross_entropy(x, t, 1e-3f, l, dx); };
      },
      1);
}

void add_elementwise(Cases& cases, std::int64_t tokens) {
  cases.add("add", tokens, kWidth, 6, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, x = random_real(b, DType::bf16, {m, n}, 1), y = random_real(b, DType::bf16, {m, n}, 2),
            z = filled(b, DType::bf16, {m, n}, 0)] { b.add(x, y, z); };
  });
  cases.add("sum_rows", tokens, kFeedForward, 2, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, x = random_real(b, DType::bf16, {m, n}, 1), s = filled(b, DType::f32, {n}, 0)] {
      b.sum_rows(x, s);
    };
  });
  cases.add("fill", tokens, kFeedForward, 4, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, x = filled(b, DType::f32, {m, n}, 0)] { b.fill(x, 0); };
  });
  cases.add("global_norm", tokens, kFeedForward, 4, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, x = random_real(b, DType::f32, {m, n}, 1), r = filled(b, DType::f32, {1}, 0)] {
      b.global_norm(std::span(&x, 1), r);
    };
  });
  cases.add("adamw", tokens, kWidth, 28, [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
    return [&b, g = random_real(b, DType::f32, {m, n}, 1), w = random_real(b, DType::f32, {m, n}, 2),
            first = filled(b, DType::f32, {m, n}, 0), second = filled(b, DType::f32, {m, n}, 0),
            norm = filled(b, DType::f32, {1}, 1)] {
      const AdamWTensor tensor{g, w, first, second};
      b.adamw({.lr = 1e-3f, .weight_decay = 0.1f}, norm, 1.0f, std::span(&tensor, 1));
    };
  });
  cases.add(
      "adamw, e4m3", tokens, kWidth, 29,
      [](Backend& b, std::int64_t m, std::int64_t n) -> Run {
        return [&b, g = random_real(b, DType::f32, {m, n}, 1), w = random_real(b, DType::f32, {m, n}, 2),
                first = filled(b, DType::f32, {m, n}, 0), second = filled(b, DType::f32, {m, n}, 0),
                norm = filled(b, DType::f32, {1}, 1), copy = fp8_output(b, m, n, DType::e4m3)] {
          AdamWTensor tensor{g, w, first, second};
          tensor.copies = {{}, copy.quantized, copy.quantizer};
          b.adamw({.lr = 1e-3f, .weight_decay = 0.1f}, norm, 1.0f, std::span(&tensor, 1));
        };
      },
      1);
}

}  // namespace

std::vector<KernelCase> kernel_cases(std::int64_t tokens) {
  Cases cases;
  add_products(cases, tokens);
  add_attention(cases, tokens);
  add_casts(cases, tokens);
  add_block_casts(cases, "cast to e4m3 in blocks, twice", BlockScaling{}, tokens);
  add_block_casts(cases, "cast to e4m3 in blocks of 32, twice", Mxfp8Scaling{}, tokens);
  add_norms(cases, tokens);
  add_activations(cases, tokens);
  add_gates(cases, tokens);
  add_heads(cases, tokens);
  add_casting_backwards(cases, tokens);
  add_model_ends(cases, tokens);
  add_elementwise(cases, tokens);
  return cases.take();
}

}  // namespace quaver
