/// Text gathered from files, document by document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace quaver {

/// Byte tokens: ids 0..255 are bytes; kDocumentToken stands before every document, and so ends the one before
/// it.
constexpr std::int32_t kDocumentToken = 256;
constexpr std::int64_t kByteVocab = 257;

/// What the files of data.path hold. detect: by their names and first bytes, see `detect_format`.
enum class DataFormat { detect, text, jsonl, tokens };

/// Section [data] of a run file.
struct DataConfig {
  std::string path;  ///< a file, a folder, or a pattern with * and ? (what is in these: see DataFormat)
  DataFormat format = DataFormat::detect;
  std::string text_field = "text";  ///< JSONL: the member of each line that is the document
  std::string tokenizer =
      "bytes";  ///< "bytes", a tokenizer's file or folder, or "none" (unknown, for shards)
  std::string document_token = "auto";  ///< the token before documents; "auto": the tokenizer's usual one
  double val_fraction = 0.05;           ///< share held back for validation, in (0, 1)
  std::int64_t max_bytes = 0;           ///< stop gathering text after that many bytes; 0: all
  std::int64_t piece_bytes =
      8192;  ///< one text file is cut at the first line end after that many, or at twice that
  bool document_mask = true;  ///< attention does not cross document boundaries

  friend bool operator==(const DataConfig&, const DataConfig&) = default;
};

struct Document {
  std::string name;  ///< path relative to the folder, or "file@offset" for a piece or a line
  std::string text;
};

/// A file of the data, and its name in messages about documents.
struct DataFile {
  std::string name, path;
};

/// The regular files that `path` names, in order of their names: itself; all below a folder (symbolic links
/// inside are not followed); or what a pattern matches. Throws Error(data) when there are none.
std::vector<DataFile> find_data_files(const std::string& path);

/// The format of config.path, never `detect`: tokens for a file `*.bin` or a pattern of these, and for a
/// folder with one that begins with a shard's header or is called train.bin; otherwise text, in which files
/// `*.jsonl` are read as JSONL.
DataFormat detect_format(const DataConfig& config);

using DocumentVisitor = std::function<void(const std::string& name, std::string_view text)>;

/// Calls `visit` with the documents in order of their files, cut short after config.max_bytes; empty ones are
/// left out. Every file is a document; a line of a JSONL file is one; a single text file is cut into pieces.
/// Files are mapped one by one. Throws Error(data) when something cannot be read or nothing is there.
void visit_documents(const DataConfig& config, const DocumentVisitor& visit);

/// Whether a document belongs to the validation split: a function of its bytes alone, so that equal documents
/// never land in different splits.
bool is_validation(std::string_view text, double val_fraction);

}  // namespace quaver
