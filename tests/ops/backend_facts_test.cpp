/// What backends say about the machine, and what follows from it.
#include "ops/backend_facts.h"

#include <gtest/gtest.h>

#include "base/threads.h"
#include "ops/cpu/levels.h"
#include "ops/cuda/chip_types.h"
#include "ops/pointwise_support.h"
#include "quaver/backend.h"
#include "quaver/error.h"

namespace quaver {
namespace {

std::string detail(const DeviceFacts& device, const std::string& name) {
  for (const auto& [key, value] : device.details) {
    if (key == name) return value;
  }
  return "";
}

bool native(const std::vector<TypeFact>& types, const std::string& type) {
  for (const TypeFact& fact : types) {
    if (fact.type == type) return fact.native;
  }
  ADD_FAILURE() << type << " is not mentioned";
  return false;
}

TEST(BackendFacts, EveryBackendIsMentionedAndUsableOnesCanBeMade) {
  const std::vector<BackendFacts> all = find_backend_facts();
  const std::vector<std::string> names = backend_names();
  ASSERT_EQ(all.size(), names.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].backend, names[i]);
    if (all[i].usable()) {
      EXPECT_FALSE(all[i].devices.empty()) << names[i];
      EXPECT_EQ(make_backend(names[i])->name(), names[i]);
    } else {
      EXPECT_THROW(make_backend(names[i]), Error) << names[i];
    }
  }
}

TEST(BackendFacts, TheLevelIsTheOneThatTheBackendChooses) {
  for (const cpu::Level level : cpu::supported_levels()) {
    const testing::IsaScope isa{std::string(cpu::name_of(level))};
    const BackendFacts facts = find_cpu_facts();
    ASSERT_TRUE(facts.usable()) << facts.missing;
    EXPECT_EQ(detail(facts.devices[0], "instruction-set level"), cpu::name_of(level));
    EXPECT_NE(detail(facts.devices[0], "why that level").find("QUAVER_ISA"), std::string::npos);
    const std::string unit = cpu::find_matrix_unit(level) ? "amx" : "none";
    EXPECT_TRUE(detail(facts.devices[0], "matrix unit").starts_with(unit));
    EXPECT_EQ(native(facts.devices[0].types, "bf16"), level == cpu::Level::avx512);
    EXPECT_FALSE(native(facts.devices[0].types, "e4m3"));
  }
}

TEST(BackendFacts, AWrongLevelIsToldAndTheRestStillKnown) {
  const testing::IsaScope isa("mmx");
  const BackendFacts facts = find_cpu_facts();
  EXPECT_FALSE(facts.usable());
  EXPECT_NE(facts.missing.find("mmx"), std::string::npos) << facts.missing;
  EXPECT_EQ(detail(facts.devices.at(0), "threads"), std::to_string(available_threads()));
  EXPECT_GT(facts.devices[0].memory_bytes, 0);
  EXPECT_EQ(recommend_backend({facts}).backend, "reference");
}

TEST(BackendFacts, ChipsMultiplyWhatTheyHaveUnitsFor) {
  for (const int chip : {89, 90, 100, 103, 120})
    EXPECT_TRUE(native(cuda::types_of_chip(chip), "e4m3")) << chip;
  for (const int chip : {75, 80, 86}) EXPECT_FALSE(native(cuda::types_of_chip(chip), "e4m3")) << chip;
  EXPECT_TRUE(native(cuda::types_of_chip(80), "bf16"));
  EXPECT_FALSE(native(cuda::types_of_chip(75), "bf16"));
}

TEST(BackendFacts, BlocksOf128NeedTheirChipAndTheirLibrary) {
  EXPECT_EQ(cuda::why_no_block_products(90, 120900), "");
  EXPECT_EQ(cuda::why_no_block_products(90, 130100), "");
  EXPECT_NE(cuda::why_no_block_products(90, 120805).find("found 12.8"), std::string::npos);
  for (const int chip : {89, 100, 120})
    EXPECT_NE(cuda::why_no_block_products(chip, 130100).find("sm_" + std::to_string(chip)),
              std::string::npos);
}

TEST(BackendFacts, BlocksOf32NeedTheirChipAndTheirLibrary) {
  for (const int chip : {100, 103, 120, 121}) {
    EXPECT_EQ(cuda::why_no_mx_products(chip, 120800), "") << chip;
    EXPECT_EQ(cuda::why_no_mx_products(chip, 130100), "") << chip;
    EXPECT_NE(cuda::why_no_mx_products(chip, 120600).find("need cuBLASLt 12.8 or newer, found 12.6"),
              std::string::npos);
  }
  for (const int chip : {89, 90})
    EXPECT_NE(cuda::why_no_mx_products(chip, 130100)
                  .find("sm_100 and newer, this GPU is sm_" + std::to_string(chip)),
              std::string::npos);
  for (const int chip : {100, 103}) EXPECT_TRUE(cuda::takes_any_fp8_layout(chip)) << chip;
  for (const int chip : {89, 90, 120, 121}) EXPECT_FALSE(cuda::takes_any_fp8_layout(chip)) << chip;
}

TEST(BackendFacts, AUsableGpuIsRecommendedAndElseTheReasonIsGiven) {
  BackendFacts cpu{.backend = "cpu"}, cuda{.backend = "cuda"};
  cuda.devices.push_back({.name = "Some GPU", .types = cuda::types_of_chip(90)});
  EXPECT_EQ(recommend_backend({cpu, cuda}).backend, "cuda");
  EXPECT_EQ(recommend_backend({cpu, cuda}).why, "Some GPU multiplies FP8 natively");
  cuda.missing = "no driver";
  EXPECT_EQ(recommend_backend({cpu, cuda}).backend, "cpu");
  EXPECT_EQ(recommend_backend({cpu, cuda}).why, "no driver");
}

}  // namespace
}  // namespace quaver
