/// A file system in memory that forgets in a crash what was not synchronised, as base/file_system.h allows it to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace quaver {

/// Thrown by every operation from a crash on. Not an Error: the program is gone and cannot handle it.
struct Crash {};

class SimulatedDisk final : public FileSystem {
 public:
  SimulatedDisk();

  /// Operations so far that a crash or a failure can hit: writes, synchronisations, renames, removals, folders.
  int operations() const { return operations_; }
  /// The `n`-th operation from now on (1: the next) throws Error(failure), having done a part of a write.
  void fail_at(int n) { fail_at_ = operations_ + n; }
  /// The `n`-th operation from now on throws Crash, and so does whatever comes after it.
  void crash_at(int n) { crash_at_ = operations_ + n; }
  /// From now on files take no more than `bytes` more in all: a write does what fits and throws Error(failure). What is
  /// removed makes no room. Nothing: no limit.
  void limit_space(std::optional<std::size_t> bytes) { space_ = bytes; }
  /// What a restart finds: of everything not synchronised a random part.
  void restart(std::mt19937_64& random);

  /// The content of a file, for damaging it.
  std::vector<std::byte>& content(const std::string& path);

  std::unique_ptr<WritableFile> create(const std::string& path) override;
  std::unique_ptr<ReadableFile> open(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove_file(const std::string& path) override;
  void make_directory(const std::string& path) override;
  void remove_directory(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  bool exists(const std::string& path) override;
  std::vector<DirectoryEntry> list(const std::string& path) override;

 private:
  struct Node;
  using Link = std::shared_ptr<Node>;
  using Names = std::map<std::string, Link>;
  /// One change of a folder's names, which a crash keeps or forgets as a whole.
  struct Change {
    std::string removed, added;  ///< empty: none
    Link node;                   ///< what `added` names
    void apply(Names& names) const;
  };
  struct Node {
    bool is_directory = false;
    std::vector<std::byte> content, durable_content;
    Names names, durable_names;
    std::vector<Change> pending;
  };
  class File;

  /// Counts an operation; true: the failure hits this one.
  bool fails();
  void count(const std::string& path);
  Link find(const std::string& path) const;  // null: not there
  Link get(const std::string& path) const;
  void change(const std::string& folder, Change change);
  static void restart(Node& node, std::mt19937_64& random);

  Link root_;
  int operations_ = 0;
  std::optional<int> fail_at_, crash_at_;
  std::optional<std::size_t> space_;
};

}  // namespace quaver
