/// Whether Intel's AMX can compute the FP8 GEMM that numerics.md section "Sums" defines: compares TDPBF16PS, on BF16
/// operands that are E4M3 numbers, with the plain loop, with the order of Intel's documentation, and one product at a time;
/// then its speed beside AVX-512's dot product. Says so where the processor has no AMX.
///
/// usage: bench_amx_order [TRIALS]
#include <cpuid.h>
#include <fmt/format.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

constexpr int kTile = 16;      // rows and columns of a tile of sums
constexpr int kProducts = 32;  // of one TDPBF16PS and sum
constexpr int kContraction = 768;

using Sums = std::array<float, kTile * kTile>;

/// a is [16, K]; b is [K, 16]; FP32 copies of the BF16 numbers.
struct Operands {
  std::vector<float> a, b;
};

std::uint16_t bf16_bits(float exact) {
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(exact) >> 16);
}

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((d & kAmxBf16) == 0 || (d & kAmxTile) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

float e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

/// Codes of any exponent, or those of normal numbers times 2^4 as a tensor's cast has them.
Operands random_operands(std::mt19937& generator, bool any_code) {
  std::uniform_int_distribution<unsigned> codes(0, 255);
  std::normal_distribution<float> normal;
  const auto draw = [&] {
    if (any_code) {
      unsigned code = codes(generator);
      while ((code & 0x7F) == 0x7F) code = codes(generator);
      return e4m3(code);
    }
    int exponent = 0;
    const float x = 16 * normal(generator), fraction = std::frexp(x, &exponent);
    return std::ldexp(std::nearbyint(fraction * 16), exponent - 4);
  };
  Operands operands;
  for (int i = 0; i < kTile * kContraction; ++i) {
    operands.a.push_back(draw());
    operands.b.push_back(draw());
  }
  return operands;
}

Sums plain_loop(const Operands& x) {
  Sums sums{};
  for (int m = 0; m < kTile; ++m)
    for (int n = 0; n < kTile; ++n)
      for (int k = 0; k < kContraction; ++k)
        sums[m * kTile + n] += x.a[m * kContraction + k] * x.b[k * kTile + n];
  return sums;
}

/// As documented: the even and the odd products of an instruction are summed apart, then both are added.
Sums documented_order(const Operands& x) {
  Sums sums{};
  for (int m = 0; m < kTile; ++m)
    for (int n = 0; n < kTile; ++n)
      for (int begin = 0; begin < kContraction; begin += kProducts) {
        float parts[2] = {};
        for (int k = begin; k < begin + kProducts; ++k)
          parts[k % 2] += x.a[m * kContraction + k] * x.b[k * kTile + n];
        sums[m * kTile + n] += parts[0] + parts[1];
      }
  return sums;
}

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

/// Tiles 0-3: sums, 4-5: a, 6-7: b, of `pairs` pairs of products.
__attribute__((target("amx-tile"))) void set_shapes(int pairs) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) {
    const bool is_a = tile == 4 || tile == 5, is_b = tile >= 6;
    shapes.bytes[tile] = static_cast<std::uint16_t>(is_a ? 4 * pairs : 64);
    shapes.rows[tile] = static_cast<std::uint8_t>(is_b ? pairs : kTile);
  }
  _tile_loadconfig(&shapes);
}

/// The contraction in steps of `step` products; the rest of the instruction's pairs are zeros.
__attribute__((target("amx-tile,amx-bf16"))) Sums by_tiles(const Operands& x, int step) {
  const int pairs = (step + 1) / 2;
  set_shapes(pairs);
  Sums sums{};
  _tile_zero(0);
  for (int begin = 0; begin < kContraction; begin += step) {
    alignas(64) std::uint16_t a[kTile * kProducts] = {}, b[kTile * kProducts] = {};
    for (int k = 0; k < step; ++k) {
      for (int i = 0; i < kTile; ++i) {
        a[i * 2 * pairs + k] = bf16_bits(x.a[i * kContraction + begin + k]);
        b[k / 2 * 2 * kTile + 2 * i + k % 2] = bf16_bits(x.b[(begin + k) * kTile + i]);
      }
    }
    _tile_loadd(4, a, 4 * pairs);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, sums.data(), 64);
  _tile_release();
  return sums;
}

/// The level that Quaver has: pairs swapped.
__attribute__((target("avx512f,avx512bf16"))) Sums by_dot_products(const Operands& x) {
  Sums sums{};
  for (int m = 0; m < kTile; ++m) {
    __m512 sum = _mm512_setzero_ps();
    for (int k = 0; k < kContraction; k += 2) {
      alignas(64) std::uint32_t a[kTile], b[kTile];
      for (int i = 0; i < kTile; ++i) {
        a[i] = static_cast<std::uint32_t>(bf16_bits(x.a[m * kContraction + k])) << 16 |
               bf16_bits(x.a[m * kContraction + k + 1]);
        b[i] = static_cast<std::uint32_t>(bf16_bits(x.b[k * kTile + i])) << 16 |
               bf16_bits(x.b[(k + 1) * kTile + i]);
      }
      const __m512i left = _mm512_load_si512(a), right = _mm512_load_si512(b);
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(left), "v"(right));
    }
    _mm512_storeu_ps(sums.data() + m * kTile, sum);
  }
  return sums;
}

int equal_elements(const Sums& a, const Sums& b) {
  int equal = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    equal += std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i]);
  return equal;
}

void compare(const char* values, bool any_code, int trials) {
  std::mt19937 generator(1);
  int dots = 0, tiles = 0, documented = 0, single = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const Operands x = random_operands(generator, any_code);
    const Sums plain = plain_loop(x), amx = by_tiles(x, kProducts);
    dots += equal_elements(by_dot_products(x), plain);
    tiles += equal_elements(amx, plain);
    documented += equal_elements(amx, documented_order(x));
    single += equal_elements(by_tiles(x, 1), plain);
  }
  const double all = static_cast<double>(trials) * kTile * kTile / 100;
  fmt::print(
      "{}: sums of {} products, equal bits: AVX-512 and the plain loop {:.2f}%, AMX and the plain loop "
      "{:.2f}%, AMX and "
      "its documented order {:.2f}%, AMX one product an instruction and the plain loop {:.2f}%\n",
      values, kContraction, dots / all, tiles / all, documented / all, single / all);
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

constexpr int kIterations = 1 << 18;

/// Four independent sums, operands in tiles. Useful products of an instruction: 16 x 16 x `products`.
__attribute__((target("amx-tile,amx-bf16"))) double tile_flops(int products) {
  set_shapes((products + 1) / 2);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kIterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const double seconds = seconds_since(begin);
  _tile_release();
  return 2.0 * 4 * kIterations * kTile * kTile * products / seconds;
}

__attribute__((target("avx512f,avx512bf16"))) double dot_product_flops() {
  constexpr int kSums = 12;
  __m512 sum[kSums];
  for (__m512& s : sum) s = _mm512_setzero_ps();
  const __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(2.0f);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kIterations; ++i) {
#pragma GCC unroll 12
    for (int s = 0; s < kSums; ++s) asm volatile("vdpbf16ps %2, %1, %0" : "+v"(sum[s]) : "v"(a), "v"(b));
  }
  const double seconds = seconds_since(begin);
  return 2.0 * 32 * kSums * kIterations / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  if (!has_amx()) {
    fmt::print("this processor has no AMX with BF16: nothing measured\n");
    return 0;
  }
  const int trials = argc > 1 ? std::atoi(argv[1]) : 200;
  compare("any E4M3 numbers", true, trials);
  compare("normal numbers of 5 significant bits", false, trials);
  for (int round = 0; round < 3; ++round)
    fmt::print(
        "GFLOP/s of one thread: AMX {:.0f}, AMX with one product an instruction {:.0f}, AVX-512 {:.0f}\n",
        tile_flops(kProducts) * 1e-9, tile_flops(1) * 1e-9, dot_product_flops() * 1e-9);
}
