#include "ops/cpu/kernels/pointwise.h"

#include "ops/cpu/kernels/curves.h"
#include "ops/cpu/kernels/quantize.h"

namespace quaver::cpu::QUAVER_CPU_LEVEL {
namespace {

template <typename T>
[[gnu::flatten]] void add_rows(Extent extent, ConstRows a, ConstRows b, Rows out, const T* type) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* left = row_of(a, row, type);
    const T* right = row_of(b, row, type);
    T* to = row_of(out, row, type);
    for_blocks<kAtOnce>(
        extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
          store(load(left + col, lanes) + load(right + col, lanes), to + col, lanes);
        });
  }
}

void add(Real real, Extent extent, ConstRows a, ConstRows b, Rows out) {
  with_type(real, [&](auto* type) { add_rows(extent, a, b, out, type); });
}

template <typename T>
[[gnu::flatten]] void scale_columns_of(Extent extent, ConstRows x, const float* factors, Rows out,
                                       const T* type) {
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* from = row_of(x, row, type);
    T* to = row_of(out, row, type);
    for_vectors(extent.cols, [&](std::int64_t col, auto lanes) {
      store(load(from + col, lanes) * load(factors + col, lanes), to + col, lanes);
    });
  }
}

void scale_columns(Real real, Extent extent, ConstRows x, const float* factors, Rows out) {
  with_type(real, [&](auto* type) { scale_columns_of(extent, x, factors, out, type); });
}

template <typename From, typename To>
[[gnu::flatten]] void convert_elements(const From* source, To* destination, std::int64_t count) {
  for_vectors(
      count, [&](std::int64_t i, auto lanes)
                 __attribute__((always_inline)) { store(load(source + i, lanes), destination + i, lanes); });
}

void convert(Real from, const void* source, Real to, void* destination, std::int64_t count) {
  with_type(from, [&]<typename From>(From*) {
    with_type(to, [&]<typename To>(To*) {
      convert_elements(static_cast<const From*>(source), static_cast<To*>(destination), count);
    });
  });
}

template <Curve curve, typename T>
[[gnu::flatten]] void gated_rows(Extent extent, ConstRows g, ConstRows u, const ProducerRows& out,
                                 const T* type) {
  Producer<T> producer(out);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* g_row = row_of(g, row, type);
    const T* u_row = row_of(u, row, type);
    producer.store_row(
        row, 0, extent.cols, [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
          fetch_ahead(g_row + col, lanes);
          if (u.data != nullptr) fetch_ahead(u_row + col, lanes);
          const auto value = value_at<curve>(load(g_row + col, lanes));
          return u.data == nullptr ? value : value * load(u_row + col, lanes);
        });
  }
  producer.finish();
}

void gated(Curve curve, Real real, Extent extent, ConstRows g, ConstRows u, const ProducerRows& out) {
  with_curve(curve, [&](auto c) {
    with_type(real, [&](auto* type) { gated_rows<c.value>(extent, g, u, out, type); });
  });
}

template <int N>
struct Gradients {
  F32<N> dg, du, again;
};
template <int N>
Gradients(F32<N>, F32<N>, F32<N>) -> Gradients<N>;  // clang 14 deduces none for aggregates

/// `kAgain`: curve(g) * u is stored too, to the bits of gated_rows: what it shares with the slope is computed once.
template <Curve curve, bool kAgain, typename T>
[[gnu::flatten]] void gated_backward_rows(Extent extent, ConstRows d, ConstRows g, ConstRows u,
                                          const ProducerRows& dg, const ProducerRows& du,
                                          const ProducerRows& again, const T* type) {
  Producer<T> dg_producer(dg), du_producer(du), again_producer(again);
  Run<T> dg_run, du_run, again_run;
  const bool has_u = u.data != nullptr;
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* d_row = row_of(d, row, type);
    const T* g_row = row_of(g, row, type);
    const T* u_row = row_of(u, row, type);
    const auto gradients_at = [&](std::int64_t col, auto lanes) __attribute__((always_inline)) {
      fetch_ahead(d_row + col, lanes);
      fetch_ahead(g_row + col, lanes);
      if (has_u) fetch_ahead(u_row + col, lanes);
      const auto gradient = load(d_row + col, lanes), x = load(g_row + col, lanes);
      const auto inverse = inverse_sigmoid<curve>(x);
      const auto at = evaluate<curve>(x, inverse);
      const auto factor = has_u ? load(u_row + col, lanes) : gradient;
      auto value = gradient;
      if constexpr (kAgain) {
        value = value_at<curve>(x, inverse);
        if (has_u) value = value * factor;
      }
      return Gradients{(has_u ? gradient * factor : gradient) * at.slope, gradient * at.value, value};
    };
    for_runs(
        extent.cols, [&](std::int64_t begin, std::int64_t columns) __attribute__((always_inline)) {
          for_run<T>(
              columns, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
                const auto at = gradients_at(begin + i, lanes);
                dg_run.keep(i, at.dg);
                if (has_u) du_run.keep(i, at.du);
                if constexpr (kAgain) again_run.keep(i, at.again);
              });
          dg_producer.store_run(row, begin, dg_run, columns);
          if (has_u) du_producer.store_run(row, begin, du_run, columns);
          if constexpr (kAgain) again_producer.store_run(row, begin, again_run, columns);
        });
  }
  dg_producer.finish();
  du_producer.finish();
  again_producer.finish();
}

void gated_backward(Curve curve, Real real, Extent extent, ConstRows d, ConstRows g, ConstRows u,
                    const ProducerRows& dg, const ProducerRows& du, const ProducerRows& again) {
  const bool wants_again = again.values != nullptr || again.bytes != nullptr;
  with_curve(curve, [&](auto c) {
    with_type(real, [&](auto* type) {
      wants_again ? gated_backward_rows<c.value, true>(extent, d, g, u, dg, du, again, type)
                  : gated_backward_rows<c.value, false>(extent, d, g, u, dg, du, again, type);
    });
  });
}

/// Heads whose gates are evaluated at once, from `first` on. Their loads are few: a tail's serve all.
inline int heads_at(std::int64_t first, std::int64_t heads) {
  return heads - first < kLanes ? static_cast<int>(heads - first) : kLanes;
}

template <Curve curve, typename T>
[[gnu::flatten]] void grouped_rows(Extent extent, std::int64_t group, ConstRows g, ConstRows u,
                                   const ProducerRows& out, const T* type) {
  Producer<T> producer(out);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    const T* g_row = row_of(g, row, type);
    const T* u_row = row_of(u, row, type);
    for (std::int64_t first = 0; first < extent.cols; first += kLanes) {
      const int heads = heads_at(first, extent.cols);
      float factors[kLanes];
      store(value_at<curve>(load(g_row + first, Tail{heads})), factors, Full{});
      // All heads as one row where no load reaches over a border between two.
      const bool at_once = group % (4 * kLanes) == 0;
      const std::int64_t stretch = at_once ? heads * group : group;
      for (int head = 0; head < heads; head += at_once ? kLanes : 1) {
        const std::int64_t begin = (first + head) * group;
        producer.store_row(
            row, begin, stretch, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
              const auto further = static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(group);
              return factors[head + static_cast<int>(further)] * load(u_row + begin + i, lanes);
            });
      }
    }
  }
  producer.finish();
}

void grouped(Curve curve, Real real, Extent extent, std::int64_t group, ConstRows g, ConstRows u,
             const ProducerRows& out) {
  with_curve(curve, [&](auto c) {
    with_type(real, [&](auto* type) { grouped_rows<c.value>(extent, group, g, u, out, type); });
  });
}

template <Curve curve, typename T>
[[gnu::flatten]] void grouped_backward_rows(Extent extent, std::int64_t group, ConstRows d, ConstRows g,
                                            ConstRows u, const ProducerRows& dg, Rows du, const T* type) {
  Producer<T> dg_producer(dg);
  for (std::int64_t row = 0; row < extent.rows; ++row) {
    for (std::int64_t first = 0; first < extent.cols; first += kLanes) {
      const int heads = heads_at(first, extent.cols);
      float values[kLanes], sums[kLanes] = {};
      const auto at = evaluate<curve>(load(row_of(g, row, type) + first, Tail{heads}));
      store(at.value, values, Full{});
      for (int head = 0; head < heads; ++head) {
        const std::int64_t begin = (first + head) * group;
        const T* d_row = row_of(d, row, type) + begin;
        const T* u_row = row_of(u, row, type) + begin;
        T* du_row = row_of(du, row, type) + begin;
        const float value = values[head];
        f32x16 products = f32s(0.0f);
        for_blocks<kAtOnce>(
            group, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
              const auto gradient = load(d_row + i, lanes);
              products = add_each(products, gradient * load(u_row + i, lanes));
              store(gradient * value, du_row + i, lanes);
            });
        sums[head] = sum(products);
      }
      store(load(sums, Full{}) * at.slope, sums, Full{});
      dg_producer.store_few(row, first, sums, heads);
    }
  }
  dg_producer.finish();
}

void grouped_backward(Curve curve, Real real, Extent extent, std::int64_t group, ConstRows d, ConstRows g,
                      ConstRows u, const ProducerRows& dg, Rows du) {
  with_curve(curve, [&](auto c) {
    with_type(real,
              [&](auto* type) { grouped_backward_rows<c.value>(extent, group, d, g, u, dg, du, type); });
  });
}

}  // namespace

extern const PointwiseKernels pointwise_kernels;
const PointwiseKernels pointwise_kernels = {
    .add = add,
    .scale_columns = scale_columns,
    .convert = convert,
    .gated = gated,
    .gated_backward = gated_backward,
    .grouped = grouped,
    .grouped_backward = grouped_backward,
};

}  // namespace quaver::cpu::QUAVER_CPU_LEVEL
