#include "ops/cpu/kernels/heads.h"

#include "ops/cpu/kernels/norm_rows.h"
#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

static_assert(kHeadsAtOnce == kLanes);

template <typename From, typename To>
[[gnu::always_inline]] inline void copy_head(const From* from, To* to, std::int64_t count) {
  for_vectors(
      count, [&](std::int64_t i, auto lanes)
                 __attribute__((always_inline)) { store(load(from + i, lanes), to + i, lanes); });
}

/// Turns the pairs (from[j], from[j + half]) by the row's angles; `direction` -1 turns back.
template <typename From, typename To>
[[gnu::always_inline]] inline void rotate(const HeadLayout& layout, std::int64_t row, float direction,
                                          const From* from, To* to) {
  if (layout.half == 0) return;
  const std::int64_t half = layout.half, table_row = layout.positions[row] * half;
  const float* cosine = layout.cosine + table_row;
  const float* sine = layout.sine + table_row;
  for_vectors(
      half, [&](std::int64_t j, auto lanes) __attribute__((always_inline)) {
        const f32x16 c = load(cosine + j, lanes);
        const f32x16 s = load(sine + j, lanes) * direction;
        const f32x16 a = load(from + j, lanes);
        const f32x16 b = load(from + half + j, lanes);
        store(a * c - b * s, to + j, lanes);
        store(b * c + a * s, to + half + j, lanes);
      });
}

/// The rotation of a whole head.
template <typename From, typename To>
[[gnu::always_inline]] inline void rotate_head(const HeadLayout& layout, std::int64_t row, float direction,
                                               const From* from, To* to) {
  rotate(layout, row, direction, from, to);
  const std::int64_t rotated = 2 * layout.half;
  copy_head(from + rotated, to + rotated, layout.head_dim - rotated);
}

[[gnu::always_inline]] inline float inverse_rms_of_one(const HeadLayout& layout, const float* head) {
  return inverse_root_mean(sum_of_squares(head, 0.0f, layout.head_dim), layout.head_dim, layout.epsilon);
}

/// rstd[h] of the heads x + h * head_dim, h < heads <= kLanes: the roots and divisions of all at once.
template <typename T>
[[gnu::always_inline]] inline void inverse_rms(const HeadLayout& layout, const T* x, std::int64_t heads,
                                               float* rstd) {
  float squares[kLanes] = {};
  for (std::int64_t h = 0; h < heads; ++h)
    squares[h] = sum_of_squares(x + h * layout.head_dim, 0.0f, layout.head_dim);
  const f32x16 mean = load(squares, Full{}) / f32s(static_cast<float>(layout.head_dim));
  store(1.0f / sqrt(mean + layout.epsilon), rstd, Full{});
}

template <typename From, typename To>
[[gnu::always_inline]] inline void normalise(const HeadLayout& layout, float rstd, const From* x, To* y) {
  for_vectors(
      layout.head_dim, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        store((load(x + i, lanes) * rstd) * load(layout.gain + i, lanes), y + i, lanes);
      });
}

/// sum of dy * gain * x: times rstd / head_dim, what the gradient of x loses of x * rstd.
template <typename From, typename Gradient>
[[gnu::always_inline]] inline float projection_of(const HeadLayout& layout, const From* x,
                                                  const Gradient* dy) {
  RowSum products;
  for_blocks<4>(
      layout.head_dim, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        products.add((load(dy + i, lanes) * load(layout.gain + i, lanes)) * load(x + i, lanes));
      });
  return products.total();
}

/// dx = gradient of the norm's input x from that of its output, given mean(dy * gain * x * rstd); adds to dgain.
template <typename From, typename Gradient, typename To>
[[gnu::always_inline]] inline void normalise_backward(const HeadLayout& layout, float rstd, float projection,
                                                      const From* x, const Gradient* dy, To* dx,
                                                      float* dgain) {
  for_blocks<4>(
      layout.head_dim, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        const auto xhat = load(x + i, lanes) * rstd;
        const auto d = load(dy + i, lanes);
        store(load(dgain + i, lanes) + d * xhat, dgain + i, lanes);
        store(rstd * (d * load(layout.gain + i, lanes) - projection * xhat), dx + i, lanes);
      });
}

/// A norm, then the rotation, from memory to memory.
template <typename T>
[[gnu::always_inline]] inline void normalise_and_rotate(const HeadLayout& layout, std::int64_t row,
                                                        float rstd, const T* from, T* to) {
  const auto normed = [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
    return (load(from + i, lanes) * rstd) * load(layout.gain + i, lanes);
  };
  const std::int64_t half = layout.half, rotated = 2 * half;
  if (half > 0) {
    const float* cosine = layout.cosine + layout.positions[row] * half;
    const float* sine = layout.sine + layout.positions[row] * half;
    for_vectors(
        half, [&](std::int64_t j, auto lanes) __attribute__((always_inline)) {
          const f32x16 c = load(cosine + j, lanes), s = load(sine + j, lanes);
          const f32x16 a = normed(j, lanes), b = normed(half + j, lanes);
          store(a * c - b * s, to + j, lanes);
          store(b * c + a * s, to + half + j, lanes);
        });
  }
  for_vectors(
      layout.head_dim - rotated, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
        store(normed(rotated + i, lanes), to + rotated + i, lanes);
      });
}

/// At most kLanes heads; rstd: theirs, where the norm comes first.
template <typename T>
[[gnu::always_inline]] inline void forward_heads(const HeadLayout& layout, std::int64_t row,
                                                 std::int64_t heads, const T* x, T* out, float* scratch) {
  float rstd[kLanes];
  if (layout.norm == HeadNorm::before_rotation) inverse_rms(layout, x, heads, rstd);
  for (std::int64_t h = 0; h < heads; ++h) {
    const T* from = x + h * layout.head_dim;
    T* to = out + h * layout.head_dim;
    if (layout.norm == HeadNorm::none) {
      rotate_head(layout, row, 1.0f, from, to);
    } else if (layout.norm == HeadNorm::before_rotation) {
      normalise_and_rotate(layout, row, rstd[h], from, to);
    } else {
      rotate_head(layout, row, 1.0f, from, scratch);
      normalise(layout, inverse_rms_of_one(layout, scratch), scratch, to);
    }
  }
}

/// body(first, heads) over the heads of a row, kLanes at once.
template <typename F>
[[gnu::always_inline]] inline void for_heads(const HeadLayout& layout, F body) {
  for (std::int64_t first = 0; first < layout.heads; first += kLanes)
    body(first, layout.heads - first < kLanes ? layout.heads - first : kLanes);
}

template <typename T>
[[gnu::flatten]] void forward_rows(std::int64_t rows, const HeadLayout& layout, ConstRows x, Rows out,
                                   float* scratch, const T* type) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for_heads(
        layout, [&](std::int64_t first, std::int64_t heads) __attribute__((always_inline)) {
          const std::int64_t begin = first * layout.head_dim;
          forward_heads(layout, row, heads, row_of(x, row, type) + begin, row_of(out, row, type) + begin,
                        scratch);
        });
  }
}

void forward(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows x, Rows out, float* scratch) {
  with_type(real, [&](auto* type) { forward_rows(rows, layout, x, out, scratch, type); });
}

/// The backward of a rotation of normalised heads, at most kLanes: first the rotation and the sums of all, then the norm,
/// so that the heads' long chains overlap.
template <typename T>
[[gnu::always_inline]] inline void backward_rotated(const HeadLayout& layout, std::int64_t row,
                                                    std::int64_t heads, const T* dout, const T* x, T* dx,
                                                    float* dgain, float* d) {
  float rstd[kLanes], projections[kLanes] = {};
  inverse_rms(layout, x, heads, rstd);
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t begin = h * layout.head_dim;
    rotate_head(layout, row, -1.0f, dout + begin, d + begin);
    projections[h] = projection_of(layout, x + begin, d + begin);
  }
  const f32x16 size = f32s(static_cast<float>(layout.head_dim));
  store((load(projections, Full{}) * load(rstd, Full{})) / size, projections, Full{});
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t begin = h * layout.head_dim;
    normalise_backward(layout, rstd[h], projections[h], x + begin, d + begin, dx + begin, dgain);
  }
}

/// The backward of a norm of rotated heads.
template <typename T>
[[gnu::always_inline]] inline void backward_normalised(const HeadLayout& layout, std::int64_t row,
                                                       const T* dout, const T* x, T* dx, float* dgain,
                                                       float* scratch) {
  float* d = scratch;
  float* input = scratch + layout.head_dim;
  rotate_head(layout, row, 1.0f, x, input);
  const float rstd = inverse_rms_of_one(layout, input);
  const float projection = projection_of(layout, input, dout) * rstd / static_cast<float>(layout.head_dim);
  normalise_backward(layout, rstd, projection, input, dout, d, dgain);
  rotate_head(layout, row, -1.0f, d, dx);
}

template <typename T>
[[gnu::always_inline]] inline void backward_heads(const HeadLayout& layout, std::int64_t row,
                                                  std::int64_t heads, const T* dout, const T* x, T* dx,
                                                  float* dgain, float* scratch) {
  if (layout.norm == HeadNorm::before_rotation)
    return backward_rotated(layout, row, heads, dout, x, dx, dgain, scratch);
  for (std::int64_t h = 0; h < heads; ++h) {
    const std::int64_t begin = h * layout.head_dim;
    if (layout.norm == HeadNorm::none) {
      rotate_head(layout, row, -1.0f, dout + begin, dx + begin);
    } else {
      backward_normalised(layout, row, dout + begin, x + begin, dx + begin, dgain, scratch);
    }
  }
}

template <typename T>
[[gnu::flatten]] void backward_rows(std::int64_t rows, const HeadLayout& layout, ConstRows dout, ConstRows x,
                                    const ProducerRows& dx, float* dgain, float* scratch, T* row_buffer) {
  const T* const type = nullptr;
  const std::int64_t transformed = layout.heads * layout.head_dim,
                     untouched = layout.untouched * layout.head_dim;
  Producer<T> producer(dx);
  const bool has_norm = layout.norm != HeadNorm::none;
  for (std::int64_t i = 0; has_norm && i < layout.head_dim; ++i) dgain[i] = 0.0f;
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* from = row_of(dout, row, type);
    T* to = dx.bytes == nullptr ? row_of(Rows{dx.values, dx.values_stride}, row, type) : row_buffer;
    for_heads(
        layout, [&](std::int64_t first, std::int64_t heads) __attribute__((always_inline)) {
          const std::int64_t begin = first * layout.head_dim;
          const T* input = has_norm ? row_of(x, row, type) + begin : nullptr;
          backward_heads(layout, row, heads, from + begin, input, to + begin, dgain, scratch);
        });
    copy_head(from + transformed, to + transformed, untouched);
    if (dx.bytes != nullptr) producer.store_numbers(row, 0, row_buffer, transformed + untouched);
  }
  producer.finish();
}

void backward(Real real, std::int64_t rows, const HeadLayout& layout, ConstRows dout, ConstRows x,
              const ProducerRows& dx, float* dgain, float* scratch, void* row) {
  with_type(real, [&]<typename T>(T*) {
    backward_rows(rows, layout, dout, x, dx, dgain, scratch, static_cast<T*>(row));
  });
}

}  // namespace

extern const HeadKernels head_kernels;
const HeadKernels head_kernels = {.forward = forward, .backward = backward};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
