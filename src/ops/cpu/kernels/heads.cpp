#include "ops/cpu/kernels/heads.h"

#include "ops/cpu/kernels/norm_rows.h"
#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <typename From, typename To>
[[gnu::always_inline]] inline void copy_head(const From* from, To* to, std::int64_t count) {
  for_vectors(count, [&](std::int64_t i, auto lanes) { store(load(from + i, lanes), to + i, lanes); });
}

/// Turns the pairs (from[j], from[j + half]) by the row's angles; `direction` -1 turns back.
template <typename From, typename To>
[[gnu::always_inline]] inline void rotate(const HeadLayout& layout, std::int64_t row, float direction,
                                          const From* from, To* to) {
  if (layout.half == 0) return;
  const std::int64_t half = layout.half, table_row = layout.positions[row] * half;
  const float* cosine = layout.cosine + table_row;
  const float* sine = layout.sine + table_row;
  for_vectors(half, [&](std::int64_t j, auto lanes) {
    const f32x16 c = load(cosine + j, lanes);
    const f32x16 s = load(sine + j, lanes) * direction;
    const f32x16 a = load(from + j, lanes);
    const f32x16 b = load(from + half + j, lanes);
    store(a * c - b * s, to + j, lanes);
    store(b * c + a * s, to + half + j, lanes);
  });
}

/// A head without a norm: from memory to memory.
template <typename T>
[[gnu::always_inline]] inline void rotate_head(const HeadLayout& layout, std::int64_t row, float direction,
                                               const T* from, T* to) {
  rotate(layout, row, direction, from, to);
  const std::int64_t rotated = 2 * layout.half;
  copy_head(from + rotated, to + rotated, layout.head_dim - rotated);
}

[[gnu::always_inline]] inline float inverse_rms(const HeadLayout& layout, const float* head) {
  return inverse_root_mean(sum_of_squares(head, 0.0f, layout.head_dim), layout.head_dim, layout.epsilon);
}

[[gnu::always_inline]] inline void normalise(const HeadLayout& layout, float* head) {
  const float rstd = inverse_rms(layout, head);
  for_vectors(layout.head_dim, [&](std::int64_t i, auto lanes) {
    store((load(head + i, lanes) * rstd) * load(layout.gain + i, lanes), head + i, lanes);
  });
}

/// d <- gradient of the norm's input x; adds to dgain.
[[gnu::always_inline]] inline void normalise_backward(const HeadLayout& layout, const float* x, float* d,
                                                      float* dgain) {
  const float rstd = inverse_rms(layout, x);
  const float projection = gradient_means(d, x, layout.gain, 0.0f, rstd, layout.head_dim).normalised;
  for_vectors(layout.head_dim, [&](std::int64_t i, auto lanes) {
    const f32x16 xhat = load(x + i, lanes) * rstd;
    const f32x16 dy = load(d + i, lanes);
    store(load(dgain + i, lanes) + dy * xhat, dgain + i, lanes);
    store(rstd * (dy * load(layout.gain + i, lanes) - projection * xhat), d + i, lanes);
  });
}

/// A norm, then the rotation, from memory to memory. Heads are normalised one after the other and independently: many of the
/// short chains that end in a root and a division are under way at once.
template <typename T>
[[gnu::always_inline]] inline void normalise_and_rotate(const HeadLayout& layout, std::int64_t row,
                                                        const T* from, T* to) {
  const float rstd =
      inverse_root_mean(sum_of_squares(from, 0.0f, layout.head_dim), layout.head_dim, layout.epsilon);
  const auto normed = [&](std::int64_t i, auto lanes) {
    return (load(from + i, lanes) * rstd) * load(layout.gain + i, lanes);
  };
  const std::int64_t half = layout.half, rotated = 2 * half;
  if (half > 0) {
    const float* cosine = layout.cosine + layout.positions[row] * half;
    const float* sine = layout.sine + layout.positions[row] * half;
    for_vectors(half, [&](std::int64_t j, auto lanes) {
      const f32x16 c = load(cosine + j, lanes), s = load(sine + j, lanes);
      const f32x16 a = normed(j, lanes), b = normed(half + j, lanes);
      store(a * c - b * s, to + j, lanes);
      store(b * c + a * s, to + half + j, lanes);
    });
  }
  for_vectors(layout.head_dim - rotated, [&](std::int64_t i, auto lanes) {
    store(normed(rotated + i, lanes), to + rotated + i, lanes);
  });
}

template <typename T>
[[gnu::flatten]] void forward_rows(std::int64_t rows, const HeadLayout& layout, ConstRows x, Rows out,
                                   float* head, const T* type) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t h = 0; h < layout.heads; ++h) {
      const std::int64_t begin = h * layout.head_dim;
      const T* from = row_of(x, row, type) + begin;
      T* to = row_of(out, row, type) + begin;
      if (layout.norm == HeadNorm::none) {
        rotate_head(layout, row, 1.0f, from, to);
      } else if (layout.norm == HeadNorm::before_rotation) {
        normalise_and_rotate(layout, row, from, to);
      } else {
        copy_head(from, head, layout.head_dim);
        rotate(layout, row, 1.0f, head, head);
        normalise(layout, head);
        copy_head(head, to, layout.head_dim);
      }
    }
  }
}

void forward(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows x, Rows out, float* scratch) {
  with_type(real, [&](auto* type) { forward_rows(rows, layout, x, out, scratch, type); });
}

template <typename T>
[[gnu::flatten]] void backward_rows(std::int64_t rows, const HeadLayout& layout, ConstRows dout, ConstRows x,
                                    Rows dx, float* dgain, float* scratch, const T* type) {
  const bool has_norm = layout.norm != HeadNorm::none;
  float* d = scratch;
  float* input = scratch + layout.head_dim;
  for (std::int64_t i = 0; has_norm && i < layout.head_dim; ++i) dgain[i] = 0.0f;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t h = 0; h < layout.heads; ++h) {
      const std::int64_t begin = h * layout.head_dim;
      const T* from = row_of(dout, row, type) + begin;
      T* to = row_of(dx, row, type) + begin;
      if (!has_norm) {
        rotate_head(layout, row, -1.0f, from, to);
        continue;
      }
      copy_head(from, d, layout.head_dim);
      copy_head(row_of(x, row, type) + begin, input, layout.head_dim);
      if (layout.norm == HeadNorm::after_rotation) {
        rotate(layout, row, 1.0f, input, input);
        normalise_backward(layout, input, d, dgain);
      }
      rotate(layout, row, -1.0f, d, d);
      if (layout.norm == HeadNorm::before_rotation) normalise_backward(layout, input, d, dgain);
      copy_head(d, to, layout.head_dim);
    }
  }
}

void backward(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows dout, ConstRows x, Rows dx,
              float* dgain, float* scratch) {
  with_type(real, [&](auto* type) { backward_rows(rows, layout, dout, x, dx, dgain, scratch, type); });
}

}  // namespace

extern const HeadKernels head_kernels;
const HeadKernels head_kernels = {.forward = forward, .backward = backward};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
