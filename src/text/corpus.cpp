#include "text/corpus.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/files.h"
#include "base/random.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

/// Regular files below `root` as (path relative to it, path), in order of the former.
std::vector<std::pair<std::string, std::string>> list_files(const std::string& root) try {
  std::vector<std::pair<std::string, std::string>> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (!fs::is_regular_file(entry.symlink_status())) continue;
    files.emplace_back(entry.path().lexically_relative(root).generic_string(), entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
} catch (const fs::filesystem_error& error) {
  fail(ErrorKind::data, "{}: cannot list the folder: {}",
       error.path1().empty() ? root : error.path1().string(), error.code().message());
}

std::vector<Document> read_folder(const std::string& root, std::uint64_t budget) {
  std::vector<Document> documents;
  for (const auto& [name, path] : list_files(root)) {
    if (budget == 0) break;
    std::string text = read_file(path, budget);
    budget -= text.size();
    if (!text.empty()) documents.push_back({name, std::move(text)});
  }
  return documents;
}

/// Where the piece that starts at `begin` ends: after the first line end once it has `size` bytes, or at
/// twice that.
std::size_t piece_end(const std::string& text, std::size_t begin, std::size_t size) {
  if (text.size() - begin <= size) return text.size();
  const std::size_t latest = std::min(text.size() - begin, 2 * size) + begin;
  const std::size_t line_end = text.find('\n', begin + size - 1);
  return line_end < latest ? line_end + 1 : latest;
}

std::vector<Document> read_pieces(const std::string& path, std::uint64_t budget, std::size_t size) {
  const std::string text = read_file(path, budget), name = fs::path(path).filename().string();
  std::vector<Document> pieces;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = piece_end(text, begin, size);
    pieces.push_back({fmt::format("{}@{}", name, begin), text.substr(begin, end - begin)});
    begin = end;
  }
  return pieces;
}

std::int64_t token_count(const std::vector<Document>& documents) {
  return std::accumulate(documents.begin(), documents.end(), std::int64_t{0},
                         [](std::int64_t sum, const Document& document) {
                           return sum + 1 + static_cast<std::int64_t>(document.text.size());
                         });
}

void check_split(const std::vector<Document>& documents, const char* split, const DataConfig& config,
                 std::int64_t context) {
  const std::int64_t tokens = token_count(documents);
  if (tokens > context) return;
  fail(ErrorKind::data,
       "{}: the {} split has {} tokens in {} documents; one sequence needs model.context + 1 = {}. Give more "
       "text, change "
       "data.val_fraction = {}{}, or lower model.context",
       config.path, split, tokens, documents.size(), context + 1, config.val_fraction,
       fs::is_directory(config.path) ? "" : fmt::format(" or data.piece_bytes = {}", config.piece_bytes));
}

}  // namespace

std::vector<Document> gather_documents(const DataConfig& config) {
  require(config.max_bytes >= 0, "data.max_bytes: expected an integer >= 0, found {}", config.max_bytes);
  require(config.piece_bytes > 0, "data.piece_bytes: expected an integer >= 1, found {}", config.piece_bytes);
  const auto budget = config.max_bytes > 0 ? static_cast<std::uint64_t>(config.max_bytes)
                                           : std::numeric_limits<std::uint64_t>::max();
  std::error_code ignored;  // read_file names the reason when the path is neither
  auto documents = fs::is_directory(config.path, ignored)
                       ? read_folder(config.path, budget)
                       : read_pieces(config.path, budget, static_cast<std::size_t>(config.piece_bytes));
  if (documents.empty()) {
    fail(ErrorKind::data,
         "{}: no text found; data.path names a text file, or a folder with files that are not empty",
         config.path);
  }
  return documents;
}

bool is_validation(const std::string& text, double val_fraction) {
  return static_cast<double>(stable_hash(text)) * 0x1p-64 < val_fraction;
}

Corpus load_corpus(const DataConfig& config, std::int64_t context) {
  Corpus corpus;
  for (Document& document : gather_documents(config)) {
    auto& split = is_validation(document.text, config.val_fraction) ? corpus.validation : corpus.train;
    split.push_back(std::move(document));
  }
  check_split(corpus.train, "training", config, context);
  check_split(corpus.validation, "validation", config, context);
  return corpus;
}

}  // namespace quaver
