#include "text/corpus.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "support/errors.h"
#include "support/temporary_folder.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

DataConfig config_for(const std::string& path) {
  DataConfig config;
  config.path = path;
  return config;
}

std::vector<Document> gather_documents(const DataConfig& config) {
  std::vector<Document> documents;
  visit_documents(config, [&](const std::string& name, std::string_view text) {
    documents.push_back({name, std::string(text)});
  });
  return documents;
}

std::vector<std::string> names_of(const std::vector<Document>& documents) {
  std::vector<std::string> names;
  for (const Document& document : documents) names.push_back(document.name);
  return names;
}

TEST(GatherDocuments, ReadsAFolderInOrderOfRelativePaths) {
  const TemporaryFolder folder;
  folder.write("b.txt", "2");
  folder.write("a/z.txt", "1");
  folder.write("a.txt", "0");
  folder.write("c/empty.txt", "");
  folder.write("c/deep/er.txt", "3");
  const auto documents = gather_documents(config_for(folder.path()));
  EXPECT_EQ(names_of(documents), (std::vector<std::string>{"a.txt", "a/z.txt", "b.txt", "c/deep/er.txt"}));
  EXPECT_EQ(documents[1].text, "1");
}

TEST(GatherDocuments, DoesNotFollowLinksInAFolder) {
  const TemporaryFolder folder, outside;
  folder.write("a.txt", "inside");
  fs::create_symlink(outside.write("secret.txt", "outside"), folder.path("link.txt"));
  fs::create_directory_symlink(outside.path(), folder.path("link"));
  fs::create_directory_symlink(folder.path(), folder.path("loop"));
  EXPECT_EQ(names_of(gather_documents(config_for(folder.path()))), std::vector<std::string>{"a.txt"});
}

TEST(GatherDocuments, AcceptsALinkAsTheFolderItself) {
  const TemporaryFolder folder;
  folder.write("texts/a.txt", "inside");
  fs::create_directory_symlink(folder.path("texts"), folder.path("link"));
  EXPECT_EQ(names_of(gather_documents(config_for(folder.path("link")))), std::vector<std::string>{"a.txt"});
}

TEST(GatherDocuments, StopsAfterMaxBytes) {
  const TemporaryFolder folder;
  folder.write("a", "12345");
  folder.write("b", "12345");
  folder.write("c", "12345");
  DataConfig config = config_for(folder.path());
  config.max_bytes = 7;
  const auto documents = gather_documents(config);
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_EQ(documents[1].text, "12");
}

TEST(GatherDocuments, CutsAFileAtLineEnds) {
  const TemporaryFolder folder;
  std::string text;
  for (int line = 0; line < 100; ++line) text += fmt::format("line {}\n", line);
  DataConfig config = config_for(folder.write("one.txt", text + "no line end"));
  config.piece_bytes = 50;
  const auto pieces = gather_documents(config);
  ASSERT_GT(pieces.size(), 10u);
  std::string joined;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(pieces[i].name, fmt::format("one.txt@{}", joined.size()));
    joined += pieces[i].text;
    if (i + 1 == pieces.size()) break;
    EXPECT_EQ(pieces[i].text.back(), '\n');
    EXPECT_GE(pieces[i].text.size(), 50u);
    EXPECT_LT(pieces[i].text.size(), 60u);
  }
  EXPECT_EQ(joined, text + "no line end");
}

TEST(GatherDocuments, CutsAFileWithoutLineEndsToo) {
  const TemporaryFolder folder;
  DataConfig config = config_for(folder.write("one.txt", std::string(1000, 'x')));
  config.piece_bytes = 64;
  const auto pieces = gather_documents(config);
  EXPECT_EQ(pieces.size(), 8u);
  EXPECT_EQ(pieces.front().text.size(), 128u);
  EXPECT_EQ(pieces.back().text.size(), 1000u - 7 * 128);
}

TEST(GatherDocuments, CutsAfterEveryByteIfAsked) {
  const TemporaryFolder folder;
  DataConfig config = config_for(folder.write("one.txt", "a\n\nb"));
  config.piece_bytes = 1;
  const auto pieces = gather_documents(config);
  std::string joined;
  for (const Document& piece : pieces) joined += piece.text;
  EXPECT_EQ(joined, "a\n\nb");
  EXPECT_EQ(pieces.size(), 3u);
}

TEST(GatherDocuments, SaysWhatIsMissing) {
  const TemporaryFolder folder;
  const std::string missing = folder.path("missing");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { gather_documents(config_for(missing)); }),
                       missing + ": cannot open"));
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { gather_documents(config_for(folder.path())); }),
                       "no text found"));
  const std::string empty = folder.write("empty", "");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { gather_documents(config_for(empty)); }),
                       "no text found"));
}

TEST(GatherDocuments, NamesAFileThatCannotBeRead) {
  if (geteuid() == 0) GTEST_SKIP() << "the superuser may read everything";
  const TemporaryFolder folder;
  const std::string path = folder.write("a.txt", "x");
  fs::permissions(path, fs::perms::none);
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { gather_documents(config_for(folder.path())); }), path));
}

TEST(IsValidation, DependsOnTheBytesAlone) {
  EXPECT_EQ(is_validation("some text", 0.5), is_validation(std::string("some ") + "text", 0.5));
  EXPECT_FALSE(is_validation("some text", 0));
  EXPECT_TRUE(is_validation("some text", 1));
}

TEST(IsValidation, TakesTheAskedShare) {
  int validation = 0;
  for (int i = 0; i < 10000; ++i) validation += is_validation(fmt::format("document {}", i), 0.1);
  // Binomial(10000, 0.1): 1000 with a standard deviation of 30, and the hash is fixed, so this either holds
  // or does not.
  EXPECT_NEAR(validation, 1000, 120);
}

TEST(GatherDocuments, ReadsLinesOfJson) {
  const TemporaryFolder folder;
  DataConfig config = config_for(folder.write(
      "a.jsonl", "{\"text\": \"one\\n\", \"id\": 1}\r\n\n{\"text\": \"\"}\n{\"text\": \"\\u00e9\"}"));
  const auto documents = gather_documents(config);
  EXPECT_EQ(names_of(documents), (std::vector<std::string>{"a.jsonl@0", "a.jsonl@42"}));
  EXPECT_EQ(documents[0].text, "one\n");
  EXPECT_EQ(documents[1].text, "\xC3\xA9");
  config.text_field = "content";
  const std::string message = error_message(ErrorKind::data, [&] { gather_documents(config); });
  EXPECT_TRUE(contains(message, "a.jsonl:1: expected an object with a string \"content\"")) << message;
  config.text_field = "text";
  config.path = folder.write("b.jsonl", "{\"text\": \"one\"}\n{\"text\": \"tw");
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { gather_documents(config); }), "b.jsonl:2"));
  config.path = folder.write("c.txt", "[1]");
  config.format = DataFormat::jsonl;
  EXPECT_TRUE(contains(error_message(ErrorKind::data, [&] { gather_documents(config); }), "c.txt:1"));
}

TEST(GatherDocuments, ReadsWhatAPatternMatches) {
  const TemporaryFolder folder;
  for (const char* name : {"a1.txt", "a2.txt", "b1.txt", "a3.md"}) folder.write(name, name);
  const auto documents = gather_documents(config_for(folder.path("a*.txt")));
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_EQ(documents[1].text, "a2.txt");
  EXPECT_TRUE(
      contains(error_message(ErrorKind::data, [&] { gather_documents(config_for(folder.path("z*"))); }),
               "no file matches"));
  folder.write("[x].txt", "a file of this very name");
  EXPECT_EQ(gather_documents(config_for(folder.path("[x].txt"))).size(), 1u);
}

}  // namespace
}  // namespace quaver
