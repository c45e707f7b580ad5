#include "text/corpus.h"

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/mapped_file.h"
#include "base/random.h"
#include "text/token_shard.h"

namespace quaver {
namespace {

namespace fs = std::filesystem;

bool is_folder(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

bool is_pattern(const std::string& path) {
  std::error_code ignored;
  return path.find_first_of("*?[") != std::string::npos && !fs::exists(path, ignored);
}

std::vector<DataFile> list_folder(const std::string& root) try {
  std::vector<DataFile> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (!fs::is_regular_file(entry.symlink_status())) continue;
    files.push_back({entry.path().lexically_relative(root).generic_string(), entry.path().string()});
  }
  return files;
} catch (const fs::filesystem_error& error) {
  fail(ErrorKind::data, "{}: cannot list the folder: {}",
       error.path1().empty() ? root : error.path1().string(), error.code().message());
}

std::vector<DataFile> list_pattern(const std::string& pattern) {
  glob_t found{};
  const int error = ::glob(pattern.c_str(), 0, nullptr, &found);
  const std::unique_ptr<glob_t, void (*)(glob_t*)> owner(&found, ::globfree);
  if (error != 0 && error != GLOB_NOMATCH) fail(ErrorKind::data, "{}: cannot list the files", pattern);
  std::vector<DataFile> files;
  for (std::size_t i = 0; i < found.gl_pathc; ++i) {
    if (!is_folder(found.gl_pathv[i])) files.push_back({found.gl_pathv[i], found.gl_pathv[i]});
  }
  if (files.empty()) fail(ErrorKind::data, "{}: no file matches the pattern", pattern);
  return files;
}

/// Where the piece that starts at `begin` ends: after the first line end once it has `size` bytes, or at
/// twice that.
std::size_t piece_end(std::string_view text, std::size_t begin, std::size_t size) {
  if (text.size() - begin <= size) return text.size();
  const std::size_t latest = std::min(text.size() - begin, 2 * size) + begin;
  const std::size_t line_end = text.substr(0, latest).find('\n', begin + size - 1);
  return line_end != std::string_view::npos ? line_end + 1 : latest;
}

/// Visits the documents of files until the bytes are used up.
class Reader {
 public:
  Reader(const DataConfig& config, DataFormat format, const DocumentVisitor& visit)
      : config_(config),
        format_(format),
        visit_(visit),
        budget_(config.max_bytes > 0 ? static_cast<std::uint64_t>(config.max_bytes)
                                     : std::numeric_limits<std::uint64_t>::max()) {}

  void read(const DataFile& file, bool in_pieces) {
    if (budget_ == 0) return;
    const MappedFile mapped(file.path);
    if (format_ == DataFormat::jsonl || file.path.ends_with(".jsonl")) {
      read_lines(file.path, file.name, mapped.text());
    } else if (in_pieces) {
      read_pieces(file.name, mapped.text().substr(0, budget_));
    } else {
      pass_on(file.name, mapped.text());
    }
  }

  bool found_any() const { return found_any_; }

 private:
  void pass_on(const std::string& name, std::string_view text) {
    text = text.substr(0, budget_);
    budget_ -= text.size();
    if (text.empty()) return;
    found_any_ = true;
    visit_(name, text);
  }

  void read_pieces(const std::string& name, std::string_view text) {
    const auto size = static_cast<std::size_t>(config_.piece_bytes);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = piece_end(text, begin, size);
      pass_on(fmt::format("{}@{}", name, begin), text.substr(begin, end - begin));
      begin = end;
    }
  }

  void read_lines(const std::string& path, const std::string& name, std::string_view text) {
    std::size_t begin = 0;
    for (std::size_t line = 1; begin < text.size() && budget_ > 0; ++line) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view content = text.substr(begin, end - begin);
      if (content.find_first_not_of(" \t\r") != std::string_view::npos)
        pass_on(fmt::format("{}@{}", name, begin), text_of_line(path, line, content));
      begin = end + 1;
    }
  }

  std::string text_of_line(const std::string& path, std::size_t line, std::string_view content) const {
    const auto json = nlohmann::json::parse(content, nullptr, false);
    if (json.is_discarded()) fail(ErrorKind::data, "{}:{}: expected an object in JSON", path, line);
    const auto field = json.is_object() ? json.find(config_.text_field) : json.end();
    if (!json.is_object() || field == json.end() || !field->is_string()) {
      fail(ErrorKind::data, "{}:{}: expected an object with a string \"{}\". Hint: data.text_field", path,
           line, config_.text_field);
    }
    return field->get<std::string>();
  }

  const DataConfig& config_;
  const DataFormat format_;
  const DocumentVisitor& visit_;
  std::uint64_t budget_;
  bool found_any_ = false;
};

}  // namespace

std::vector<DataFile> find_data_files(const std::string& path) {
  if (!is_folder(path) && !is_pattern(path)) return {{fs::path(path).filename().string(), path}};
  std::vector<DataFile> files = is_folder(path) ? list_folder(path) : list_pattern(path);
  std::sort(files.begin(), files.end(), [](const DataFile& a, const DataFile& b) { return a.name < b.name; });
  return files;
}

DataFormat detect_format(const DataConfig& config) {
  if (config.format != DataFormat::detect) return config.format;
  if (config.path.ends_with(".bin")) return DataFormat::tokens;
  if (!is_folder(config.path)) return DataFormat::text;
  for (const DataFile& file : find_data_files(config.path)) {
    if (!file.name.ends_with(".bin")) continue;
    if (fs::path(file.name).filename() == "train.bin" || has_shard_header(file.path))
      return DataFormat::tokens;
  }
  return DataFormat::text;
}

void visit_documents(const DataConfig& config, const DocumentVisitor& visit) {
  require(config.max_bytes >= 0, "data.max_bytes: expected an integer >= 0, found {}", config.max_bytes);
  require(config.piece_bytes > 0, "data.piece_bytes: expected an integer >= 1, found {}", config.piece_bytes);
  Reader reader(config, detect_format(config), visit);
  const bool single = !is_folder(config.path) && !is_pattern(config.path);
  for (const DataFile& file : find_data_files(config.path)) reader.read(file, single);
  if (!reader.found_any()) {
    fail(ErrorKind::data,
         "{}: no text found; data.path names a text file, or a folder with files that are not empty",
         config.path);
  }
}

bool is_validation(std::string_view text, double val_fraction) {
  return static_cast<double>(stable_hash(text)) * 0x1p-64 < val_fraction;
}

}  // namespace quaver
