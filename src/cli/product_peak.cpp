#include "cli/product_peak.h"

#include <chrono>

namespace quaver::cli {
namespace {

constexpr std::int64_t kSize = 8192;
constexpr int kProductsAtOnce = 10;

Tensor random_matrix(Backend& backend, std::uint64_t stream) {
  const Tensor full = backend.allocate(DType::f32, {kSize, kSize});
  backend.fill_normal(full, 0, 1, 1, stream);
  Tensor rounded = backend.allocate(DType::bf16, {kSize, kSize});
  backend.convert(full, rounded);
  return rounded;
}

}  // namespace

double measure_product_peak(Backend& backend, double seconds) {
  const Tensor a = random_matrix(backend, 1), b = random_matrix(backend, 2);
  const Tensor out = backend.allocate(DType::bf16, {kSize, kSize});
  const auto multiply = [&](int times) {
    for (int i = 0; i < times; ++i) backend.gemm(Gemm::fprop, a, b, {}, false, out);
    bf16 first;
    backend.copy_to_host(out.slice(0, 1).reshape({kSize}).slice(0, 1), &first);  // waits
  };
  multiply(1);  // plans are made
  std::int64_t products = 0;
  const auto begin = std::chrono::steady_clock::now();
  std::chrono::duration<double> elapsed{};
  while (elapsed.count() < seconds) {
    multiply(kProductsAtOnce);
    products += kProductsAtOnce;
    elapsed = std::chrono::steady_clock::now() - begin;
  }
  return 2.0 * kSize * kSize * kSize * static_cast<double>(products) / elapsed.count();
}

}  // namespace quaver::cli
