/// GEMMs of the CPU backend, FP8 and BF16, beside oneDNN's BF16 matmul (when the build found it) and the raw
/// loop of products, all in turn in one process: the machine's clock and its other users change. oneDNN uses AMX where there
/// is one, so the comparison with it is even with --products fast.
///
/// usage: bench_gemm [--threads N] [--products exact|fast] [--shapes linear|small|sweep|all] [--rounds N]
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/busy_timer.h"
#include "onednn_matmul.h"
#include "ops/cpu/peak.h"
#include "quaver/backend.h"

namespace quaver {
namespace {

constexpr double kSecondsPerTurn = 0.01;

struct Options {
  int threads = 0, rounds = 9;
  Products products = Products::exact;
  std::string shapes = "linear";
};

struct Sizes {
  std::int64_t m, k, n;
};

/// nano and gated-124m (1024 tokens), a width-320 model (2048 tokens), squares.
const std::vector<Sizes> kLinearShapes = {
    {1024, 192, 512},   {1024, 192, 1024}, {1024, 512, 192},  {1024, 192, 257},   {1024, 768, 1920},
    {1024, 768, 768},   {1024, 768, 4096}, {1024, 2048, 768}, {1024, 768, 32768}, {4096, 768, 4096},
    {2048, 320, 1280},  {2048, 1280, 320}, {512, 512, 512},   {1024, 1024, 1024}, {2048, 2048, 2048},
    {4096, 4096, 4096}, {2048, 768, 2304}, {2048, 3072, 768}};
/// Few tokens, small widths, odd sizes.
const std::vector<Sizes> kSmallShapes = {
    {16, 768, 768},   {16, 768, 2048},  {64, 768, 768},  {64, 2048, 768}, {128, 320, 320}, {128, 768, 2304},
    {256, 256, 256},  {256, 192, 512},  {512, 128, 128}, {512, 64, 256},  {512, 320, 960}, {100, 300, 500},
    {512, 768, 1223}, {333, 777, 1111}, {512, 192, 257}, {256, 1024, 256}};

/// Packed q, k and v (8 heads, 2 for keys and values) of every head size, and odd vocabularies, for few and many tokens.
std::vector<Sizes> sweep() {
  std::vector<Sizes> shapes;
  for (const std::int64_t tokens : {16, 64, 256, 512}) {
    for (const std::int64_t head_dim : {32, 64, 96, 128, 160, 256}) {
      shapes.push_back({tokens, 8 * head_dim, 12 * head_dim});
    }
    for (const std::int64_t vocab : {257, 32001, 50257}) shapes.push_back({tokens, 768, vocab});
  }
  return shapes;
}

std::vector<Sizes> shapes_of(const std::string& name) {
  std::vector<Sizes> shapes;
  const auto add = [&](const char* set, const std::vector<Sizes>& sizes) {
    if (name == set || name == "all") shapes.insert(shapes.end(), sizes.begin(), sizes.end());
  };
  add("linear", kLinearShapes);
  add("small", kSmallShapes);
  add("sweep", sweep());
  return shapes;
}

double seconds_of(const std::function<void()>& body, int threads) {
  const BusyTimer timer(threads);
  body();
  return timer.seconds();
}

/// Values of ordinary size: 0.5 to 2, both signs.
GemmOperand operand(Backend& backend, DType dtype, std::int64_t rows, std::int64_t cols) {
  const Tensor real = backend.allocate(DType::f32, {rows, cols});
  backend.fill_normal(real, 0, 1, 1, 1);
  GemmOperand operand(backend.allocate(dtype, {rows, cols}));
  if (!is_fp8(dtype)) {
    backend.convert(real, operand.values);
    return operand;
  }
  operand.scale_inv = backend.allocate(DType::f32, {1});
  const Tensor scale = backend.allocate(DType::f32, {1});
  backend.fill(scale, 1);
  backend.cast(real, {{}, {operand.values, {}, operand.scale_inv}, {dtype, scale, {}, {}}});
  return operand;
}

/// One competitor: its times, round by round.
struct Subject {
  std::string name;
  std::function<void()> run;
  int repeats = 1;
  std::vector<double> rates = {}, shares = {};
};

std::function<void()> our_gemm(Backend& backend, Gemm kind, DType dtype, const Sizes& sizes,
                               const Tensor& out) {
  const auto [m, k, n] = sizes;
  const DType gradient = is_fp8(dtype) ? DType::e5m2 : dtype;
  const GemmOperand a =
      kind == Gemm::fprop ? operand(backend, dtype, m, k) : operand(backend, gradient, m, n);
  const GemmOperand b = kind == Gemm::wgrad ? operand(backend, dtype, m, k) : operand(backend, dtype, n, k);
  return [&backend, kind, a, b, out] { backend.gemm(kind, a, b, {}, false, out); };
}

void measure(Backend& backend, Gemm kind, const Sizes& sizes, const Options& options,
             std::vector<double>& against_onednn) {
  const int threads = options.threads;
  const auto [m, k, n] = sizes;
  const Shape shape = kind == Gemm::fprop ? Shape{m, n} : kind == Gemm::dgrad ? Shape{m, k} : Shape{n, k};
  const Tensor out = backend.allocate(kind == Gemm::wgrad ? DType::f32 : DType::bf16, shape);
  std::vector<Subject> subjects = {{"fp8", our_gemm(backend, kind, DType::e4m3, sizes, out)},
                                   {"bf16", our_gemm(backend, kind, DType::bf16, sizes, out)}};
  if (const auto run = onednn_matmul(kind, m, k, n)) subjects.push_back({"oneDNN", run});
  const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(k) * static_cast<double>(n);
  for (Subject& subject : subjects) {
    subject.run();
    const double once = std::min(seconds_of(subject.run, threads), seconds_of(subject.run, threads));
    subject.repeats = std::max(1, static_cast<int>(kSecondsPerTurn / once));
  }
  std::vector<double> fp8_share, bf16_share;
  for (int round = 0; round < options.rounds; ++round) {
    const double peak = cpu::measure_bf16_peak(threads, kSecondsPerTurn, options.products);
    for (Subject& subject : subjects) {
      const double seconds = seconds_of(
          [&] {
            for (int i = 0; i < subject.repeats; ++i) subject.run();
          },
          threads);
      subject.rates.push_back(operations * subject.repeats / seconds);
      subject.shares.push_back(subject.rates.back() / peak);
    }
    fp8_share.push_back(subjects[0].rates.back() / subjects.back().rates.back());
    bf16_share.push_back(subjects[1].rates.back() / subjects.back().rates.back());
  }
  fmt::print("{:>5} {:>5} {:>5}  {:5} ", m, k, n, name_of(kind));
  for (const Subject& subject : subjects) {
    fmt::print(" {:>6}{:6.0f} {:3.0f}%", subject.name, median(subject.rates) * 1e-9,
               median(subject.shares) * 100);
  }
  if (subjects.size() == 3) {
    against_onednn.push_back(median(fp8_share));
    fmt::print("  fp8/oneDNN {:.2f}  bf16/oneDNN {:.2f}", median(fp8_share), median(bf16_share));
  }
  fmt::print("\n");
  std::fflush(stdout);
}

}  // namespace
}  // namespace quaver

int main(int argc, char** argv) {
  using namespace quaver;
  CLI::App app(
      "GEMMs of the CPU backend beside oneDNN and the peak of products: GFLOP/s and share of the peak");
  Options options;
  app.add_option("--threads", options.threads, "0: all processors")->capture_default_str();
  app.add_option("--rounds", options.rounds, "alternating rounds; medians are printed")
      ->capture_default_str();
  app.add_option("--products", options.products)
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, Products>{{"exact", Products::exact}, {"fast", Products::fast}}))
      ->default_str("exact");
  app.add_option("--shapes", options.shapes)
      ->check(CLI::IsMember({"linear", "small", "sweep", "all"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  prepare_onednn(argv, options.threads);

  const auto backend = make_backend("cpu", options.threads, options.products);
  fmt::print("{}; {}\n    m     k     n\n", backend->describe(), onednn_description());
  std::vector<double> against_onednn;
  for (const Sizes& size : shapes_of(options.shapes)) {
    for (Gemm kind : {Gemm::fprop, Gemm::dgrad, Gemm::wgrad}) {
      measure(*backend, kind, size, options, against_onednn);
    }
  }
  if (against_onednn.empty()) return 0;
  fmt::print("fp8/oneDNN: median {:.2f}, least {:.2f}\n", median(against_onednn),
             *std::min_element(against_onednn.begin(), against_onednn.end()));
}
