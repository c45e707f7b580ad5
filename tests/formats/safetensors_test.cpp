#include "formats/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <limits>

#include "base/files.h"
#include "support/errors.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

NamedArray make_array(const std::string& name, DType dtype, const Shape& shape) {
  NamedArray array{name, dtype, shape, {}};
  array.bytes.resize(static_cast<std::size_t>(element_count(shape)) * size_of(dtype));
  for (std::size_t i = 0; i < array.bytes.size(); ++i) array.bytes[i] = static_cast<std::byte>(i * 37 + 11);
  return array;
}

std::vector<NamedArray> arrays_of_all_types() {
  return {make_array("f32", DType::f32, {2, 3}),
          make_array("scalar", DType::f32, {}),
          make_array("bf16", DType::bf16, {3, 5}),
          make_array("e4m3", DType::e4m3, {7}),
          make_array("e5m2", DType::e5m2, {1, 1, 3}),
          make_array("empty", DType::f32, {0, 4}),
          make_array("i32", DType::i32, {5}),
          make_array("i64", DType::i64, {2}),
          make_array("u8 \"\xC3\xA9\"", DType::u8, {17})};
}

void expect_equal(const std::vector<NamedArray>& found, const std::vector<NamedArray>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].name, expected[i].name);
    EXPECT_EQ(found[i].dtype, expected[i].dtype);
    EXPECT_EQ(found[i].shape, expected[i].shape);
    EXPECT_EQ(found[i].bytes, expected[i].bytes);
  }
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string path(const std::string& name = "file.safetensors") const { return folder_.path(name); }

  /// A file with this header and `data_bytes` bytes of data.
  std::string write_raw(const std::string& header, std::size_t data_bytes) const {
    return write_with_length(header.size(), header + std::string(data_bytes, 'x'));
  }
  std::string write_with_length(std::uint64_t length, const std::string& rest) const {
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    return folder_.write("file.safetensors", file + rest);
  }
  void write_with_nothing() const { folder_.write("file.safetensors", ""); }
  /// The reason for which a file with this header is refused.
  std::string refusal(const std::string& header, std::size_t data_bytes) const {
    const std::string file = write_raw(header, data_bytes);
    const std::string message = error_message(ErrorKind::data, [&] { read_safetensors(file); });
    EXPECT_EQ(message, error_message(ErrorKind::data, [&] { read_safetensors_header(file); }));
    EXPECT_EQ(message, error_message(ErrorKind::data, [&] { MappedSafetensors mapped(file); }));
    EXPECT_TRUE(message.starts_with(file + ": not a valid safetensors file: ")) << message;
    return message;
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(SafetensorsTest, RoundTrip) {
  const auto arrays = arrays_of_all_types();
  const std::map<std::string, std::string> metadata{{"config", "a = \"b\"\n"}, {"\xC3\xA9", ""}};
  write_safetensors(path(), arrays, metadata);
  const Safetensors file = read_safetensors(path());
  EXPECT_EQ(file.metadata, metadata);
  // Two arrays may begin at one offset when the first is empty: order among equals follows the end.
  expect_equal(file.arrays, arrays);
  ASSERT_NE(file.find("i32"), nullptr);
  EXPECT_EQ(file.find("i32")->dtype, DType::i32);
  EXPECT_EQ(file.find("i33"), nullptr);
}

TEST_F(SafetensorsTest, AMappedFileShowsTheSameArrays) {
  const auto arrays = arrays_of_all_types();
  write_safetensors(path(), arrays, {{"a", "b"}});
  const MappedSafetensors opened(path());
  write_safetensors(path(),
                    std::vector{make_array("other", DType::f32, {1})});  // replaces, does not overwrite
  EXPECT_EQ(opened.metadata(), (std::map<std::string, std::string>{{"a", "b"}}));
  std::vector<NamedArray> found;
  for (const MappedArray& array : opened.arrays()) {
    found.push_back({array.name, array.dtype, array.shape, {array.bytes.begin(), array.bytes.end()}});
  }
  expect_equal(found, arrays);
}

TEST_F(SafetensorsTest, AnEmptyFileCanBeMappedAndIsRefused) {
  write_with_nothing();
  const std::string message = error_message(ErrorKind::data, [&] { MappedSafetensors mapped(path()); });
  EXPECT_TRUE(contains(message, "expected a header length of 8 bytes, but the file has 0 bytes")) << message;
}

TEST_F(SafetensorsTest, RoundTripOfNothing) {
  write_safetensors(path(), {});
  EXPECT_TRUE(read_safetensors(path()).arrays.empty());
  EXPECT_EQ(read_file(path()).substr(8), "{}      ");
}

TEST_F(SafetensorsTest, HeaderAloneLeavesTheBytesOut) {
  write_safetensors(path(), arrays_of_all_types(), {{"a", "b"}});
  const Safetensors file = read_safetensors_header(path());
  EXPECT_EQ(file.metadata.at("a"), "b");
  ASSERT_EQ(file.arrays.size(), 9u);
  EXPECT_EQ(file.arrays[2].shape, (Shape{3, 5}));
  EXPECT_TRUE(file.arrays[2].bytes.empty());
}

TEST_F(SafetensorsTest, WritesTheDocumentedBytes) {
  write_safetensors(path(), std::vector{make_array("a", DType::e4m3, {2})}, {{"k", "v"}});
  std::string header =
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string expected(8, '\0');
  expected[0] = static_cast<char>(header.size());
  EXPECT_EQ(read_file(path()), expected + header + "\x0B\x30");
}

TEST_F(SafetensorsTest, DataBeginsAtAMultipleOf8) {
  for (int length = 1; length < 10; ++length) {
    write_safetensors(path(), std::vector{make_array(std::string(length, 'n'), DType::u8, {1})});
    EXPECT_EQ(read_file(path()).size() % 8, 1u);
  }
}

TEST_F(SafetensorsTest, AcceptsArraysInAnyOrderOfNames) {
  const std::string header =
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"a":{"data_offsets":[0,2],"shape":[2],"dtype":"U8"}} )";
  const Safetensors file = read_safetensors(write_raw(header, 3));
  ASSERT_EQ(file.arrays.size(), 2u);
  EXPECT_EQ(file.arrays[0].name, "a");
}

TEST_F(SafetensorsTest, RefusesEveryTruncation) {
  write_safetensors(path(), arrays_of_all_types(), {{"a", "b"}});
  const std::string whole = read_file(path());
  const TemporaryFolder folder;
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string cut = folder.write("cut", whole.substr(0, size));
    EXPECT_THROW(read_safetensors(cut), Error) << size;
  }
  EXPECT_NO_THROW(read_safetensors(folder.write("cut", whole)));
  EXPECT_THROW(read_safetensors(folder.write("cut", whole + "x")), Error);
}

TEST_F(SafetensorsTest, SurvivesEveryFlippedHeaderByte) {
  write_safetensors(path(), std::vector{make_array("a", DType::f32, {2, 3}), make_array("b", DType::u8, {3})},
                    {{"k", "v"}});
  const std::string whole = read_file(path());
  const TemporaryFolder folder;
  int refused = 0;
  for (std::size_t i = 0; i < whole.size() - 27; ++i) {
    for (const int bit : {0, 1, 6, 7}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      try {
        read_safetensors(
            folder.write("damaged", damaged));  // a changed letter of a name is no damage one could see
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::data);
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 300);
}

TEST_F(SafetensorsTest, RefusesHugeHeaderLengths) {
  for (const std::uint64_t length :
       {std::uint64_t{3}, kMaxSafetensorsHeader + 1, std::numeric_limits<std::uint64_t>::max(),
        std::numeric_limits<std::uint64_t>::max() - 7, std::uint64_t{1} << 63}) {
    const std::string file = write_with_length(length, "{}");
    EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { read_safetensors(file); }), "does not fit"))
        << length;
  }
}

TEST_F(SafetensorsTest, RefusesWhatIsNotAnObject) {
  EXPECT_TRUE(contains(refusal("", 0), "does not begin with '{'"));
  EXPECT_TRUE(contains(refusal("[]", 0), "does not begin with '{'"));
  EXPECT_TRUE(contains(refusal(" {}", 0), "does not begin with '{'"));
  EXPECT_TRUE(contains(refusal("{", 0), "not JSON"));
  EXPECT_TRUE(contains(refusal("{} x", 0), "not JSON"));
  EXPECT_TRUE(contains(refusal("{\"__metadata__\":{\"k\":\"\xFF\"}}", 0), "not JSON"));
  EXPECT_TRUE(contains(refusal(std::string("{}\0x", 4), 0), "zero byte"));
}

TEST_F(SafetensorsTest, RefusesDuplicateKeys) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_TRUE(contains(refusal(R"({"a":)" + entry + R"(,"a":)" + entry + "}", 0), "\"a\" occurs twice"));
  EXPECT_TRUE(contains(refusal(R"({"a":)" + entry + R"(,"\u0061":)" + entry + "}", 0), "\"a\" occurs twice"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0),
                       "occurs twice"));
  EXPECT_TRUE(contains(refusal(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "\"k\" occurs twice"));
}

TEST_F(SafetensorsTest, RefusesWrongMetadata) {
  EXPECT_TRUE(contains(refusal(R"({"__metadata__":[]})", 0), "expected an object, found array"));
  EXPECT_TRUE(
      contains(refusal(R"({"__metadata__":{"k":1}})", 0), "expected \"k\" to be a string, found number"));
}

TEST_F(SafetensorsTest, RefusesWrongEntries) {
  EXPECT_TRUE(contains(refusal(R"({"a":3})", 0), "expected an object, found number"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"U8","shape":[0]}})", 0), "expected exactly the keys"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":1}})", 0),
                       "expected exactly the keys"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}})", 0),
                       "dtype \"F16\" is not supported"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":8,"shape":[0],"data_offsets":[0,0]}})", 0),
                       "expected dtype to be a string"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"U8","shape":{},"data_offsets":[0,0]}})", 0),
                       "expected shape to be a list"));
  EXPECT_TRUE(contains(refusal(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}})", 0),
                       "expected 2 data_offsets, found 1"));
}

TEST_F(SafetensorsTest, RefusesWrongNumbers) {
  for (const std::string number :
       {"-1", "1.0", "1e0", "true", "\"1\"", "null", "9223372036854775808", "1e30", "[1]"}) {
    const std::string header = R"({"a":{"dtype":"U8","shape":[)" + number + R"(],"data_offsets":[0,1]}})";
    EXPECT_TRUE(contains(refusal(header, 1), "expected an integer in [0, 2^63) in shape")) << number;
    const std::string offsets = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,)" + number + "]}}";
    EXPECT_TRUE(contains(refusal(offsets, 1), "expected an integer in [0, 2^63) in data_offsets")) << number;
  }
}

TEST_F(SafetensorsTest, RefusesShapesThatOverflow) {
  for (const std::string shape :
       {"9223372036854775807", "4294967296,4294967296", "4611686018427387904,4,1"}) {
    EXPECT_TRUE(contains(
        refusal(R"({"a":{"dtype":"F32","shape":[)" + shape + R"(],"data_offsets":[0,0]}})", 0), "too large"))
        << shape;
  }
}

TEST_F(SafetensorsTest, RefusesOffsetsThatDoNotSpanTheArray) {
  const auto header = [](const std::string& offsets) {
    return R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[)" + offsets + "]}}";
  };
  EXPECT_NO_THROW(read_safetensors(write_raw(header("0,8"), 8)));
  EXPECT_TRUE(contains(refusal(header("0,7"), 7), "do not span the 8 bytes of f32[2]"));
  EXPECT_TRUE(contains(refusal(header("0,9"), 9), "do not span"));
  EXPECT_TRUE(contains(refusal(header("1,9"), 9), "hole"));
  EXPECT_TRUE(contains(refusal(header("8,0"), 8), "hole"));
  EXPECT_TRUE(contains(refusal(header("0,8"), 9), "span 8 bytes, but 9 bytes follow"));
  EXPECT_TRUE(contains(refusal(header("0,8"), 7), "span 8 bytes, but 7 bytes follow"));
}

TEST_F(SafetensorsTest, RefusesOverlapsAndHoles) {
  const auto header = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[)" + first +
           R"(]},"b":{"dtype":"U8","shape":[4],"data_offsets":[)" + second + "]}}";
  };
  EXPECT_NO_THROW(read_safetensors(write_raw(header("0,4", "4,8"), 8)));
  EXPECT_NO_THROW(read_safetensors(write_raw(header("4,8", "0,4"), 8)));
  EXPECT_TRUE(contains(refusal(header("0,4", "3,7"), 7), "overlap"));
  EXPECT_TRUE(contains(refusal(header("0,4", "0,4"), 4), "overlap"));
  EXPECT_TRUE(contains(refusal(header("0,4", "5,9"), 9), "hole"));
}

TEST_F(SafetensorsTest, WriterRefusesWhatItCouldNotReadBack) {
  NamedArray array = make_array("a", DType::f32, {2});
  const auto message = [&](const std::vector<NamedArray>& arrays,
                           const std::map<std::string, std::string>& metadata = {}) {
    return error_message(ErrorKind::usage, [&] { write_safetensors(path(), arrays, metadata); });
  };
  EXPECT_TRUE(contains(message({array, array}), "\"a\" is given twice"));
  EXPECT_TRUE(contains(message({array}, {{"k", "\xFF"}}), "not UTF-8"));
  array.name = "__metadata__";
  EXPECT_TRUE(contains(message({array}), "reserved"));
  array.name = "a";
  array.bytes.pop_back();
  EXPECT_TRUE(contains(message({array}), "f32[2] has 7 bytes"));
  EXPECT_FALSE(std::filesystem::exists(path()));
}

TEST_F(SafetensorsTest, AFullDiskLeavesTheOldFile) {
  const auto arrays = arrays_of_all_types();
  write_safetensors(path(), arrays);
  std::filesystem::create_symlink("/dev/full", path() + ".tmp");
  const std::vector<NamedArray> others{make_array("other", DType::f32, {100})};
  EXPECT_TRUE(contains(error_message(ErrorKind::failure, [&] { write_safetensors(path(), others); }),
                       "No space left on device"));
  expect_equal(read_safetensors(path()).arrays, arrays);
}

TEST_F(SafetensorsTest, NamesAMissingFile) {
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { read_safetensors(path("missing")); }),
                       path("missing") + ": cannot open"));
}

}  // namespace
}  // namespace quaver
