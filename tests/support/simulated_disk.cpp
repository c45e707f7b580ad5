#include "support/simulated_disk.h"

#include <algorithm>
#include <filesystem>
#include <span>
#include <utility>

#include "base/check.h"

namespace quaver {
namespace {

std::string leaf_of(const std::string& path) {
  return std::filesystem::path(path).filename();
}

bool coin(std::mt19937_64& random) {
  return random() % 2 == 0;
}

/// What may lie on the disk of a file of which `durable` was synchronised and `written` was not.
std::vector<std::byte> after_crash(const std::vector<std::byte>& durable,
                                   const std::vector<std::byte>& written, std::mt19937_64& random) {
  if (durable == written) return durable;
  std::vector<std::byte> found = coin(random) ? written : durable;
  if (!found.empty() && coin(random)) found.resize(random() % found.size());
  // The length reached the disk, some of the bytes did not.
  if (!found.empty() && coin(random)) {
    const std::size_t lost = random() % found.size();
    std::fill(found.begin() + static_cast<std::ptrdiff_t>(lost), found.end(), std::byte{0});
  }
  return found;
}

}  // namespace

class SimulatedDisk::File final : public WritableFile, public ReadableFile {
 public:
  File(SimulatedDisk& disk, std::string path, Link node)
      : disk_(disk), path_(std::move(path)), node_(std::move(node)) {}

  void append(std::span<const std::byte> bytes) override {
    const bool fails = disk_.fails();
    const std::size_t room = disk_.space_.value_or(bytes.size());
    const bool full = room < bytes.size();
    const auto part = full ? bytes.first(room) : fails ? bytes.first(bytes.size() / 2) : bytes;
    node_->content.insert(node_->content.end(), part.begin(), part.end());
    if (disk_.space_) *disk_.space_ -= part.size();
    if (full) fail(ErrorKind::failure, "{}: cannot write: No space left on device", path_);
    if (fails) fail(ErrorKind::failure, "{}: cannot write: simulated", path_);
  }
  void sync() override {
    disk_.count(path_);
    node_->durable_content = node_->content;
  }
  void close() override { disk_.count(path_); }

  std::uint64_t size() const override { return node_->content.size(); }
  void read(std::uint64_t offset, std::span<std::byte> destination) const override {
    if (offset + destination.size() > size()) fail(ErrorKind::data, "{}: ends early", path_);
    std::copy_n(node_->content.begin() + static_cast<std::ptrdiff_t>(offset), destination.size(),
                destination.begin());
  }

 private:
  SimulatedDisk& disk_;
  std::string path_;
  Link node_;
};

SimulatedDisk::SimulatedDisk() : root_(std::make_shared<Node>()) {
  root_->is_directory = true;
}

void SimulatedDisk::Change::apply(Names& names) const {
  if (!removed.empty()) names.erase(removed);
  if (!added.empty()) names[added] = node;
}

bool SimulatedDisk::fails() {
  ++operations_;
  if (crash_at_ && operations_ >= *crash_at_) throw Crash();
  return fail_at_ == operations_;
}

void SimulatedDisk::count(const std::string& path) {
  if (fails()) fail(ErrorKind::failure, "{}: simulated failure", path);
}

SimulatedDisk::Link SimulatedDisk::find(const std::string& path) const {
  Link node = root_;
  for (const auto& part : std::filesystem::path(path).relative_path()) {
    if (part.empty() || part == ".") continue;
    const auto found = node->names.find(part);
    if (found == node->names.end()) return nullptr;
    node = found->second;
  }
  return node;
}

SimulatedDisk::Link SimulatedDisk::get(const std::string& path) const {
  Link node = find(path);
  if (!node) fail(ErrorKind::failure, "{}: no such file", path);
  return node;
}

void SimulatedDisk::change(const std::string& folder, Change change) {
  const Link node = get(folder);
  change.apply(node->names);
  node->pending.push_back(std::move(change));
}

void SimulatedDisk::restart(std::mt19937_64& random) {
  crash_at_.reset();
  fail_at_.reset();
  restart(*root_, random);
}

void SimulatedDisk::restart(Node& node, std::mt19937_64& random) {
  node.content = node.durable_content = after_crash(node.durable_content, node.content, random);
  node.names = node.durable_names;
  // Losing an earlier change and keeping a later one is what reordered writes look like. The kept ones apply in
  // their order: of two changes of one name the later wins, and a folder never has two names.
  for (const Change& change : node.pending) {
    if (coin(random)) change.apply(node.names);
  }
  node.durable_names = node.names;
  node.pending.clear();
  for (auto& [name, child] : node.names) restart(*child, random);
}

std::vector<std::byte>& SimulatedDisk::content(const std::string& path) {
  return get(path)->content;
}

std::unique_ptr<WritableFile> SimulatedDisk::create(const std::string& path) {
  count(path);
  Link node = find(path);
  if (!node) {
    node = std::make_shared<Node>();
    change(parent_of(path), {"", leaf_of(path), node});
  }
  node->content.clear();
  return std::make_unique<File>(*this, path, node);
}

std::unique_ptr<ReadableFile> SimulatedDisk::open(const std::string& path) {
  return std::make_unique<File>(*this, path, get(path));
}

void SimulatedDisk::rename(const std::string& from, const std::string& to) {
  count(from);
  const Link target = find(to);
  if (target && target->is_directory && !target->names.empty())
    fail(ErrorKind::failure, "{}: cannot rename: {} is not empty", from, to);
  change(parent_of(from), {leaf_of(from), leaf_of(to), get(from)});
}

void SimulatedDisk::remove_file(const std::string& path) {
  count(path);
  change(parent_of(path), {leaf_of(path), "", nullptr});
}

void SimulatedDisk::make_directory(const std::string& path) {
  count(path);
  if (find(path)) fail(ErrorKind::failure, "{}: cannot make the folder: it exists", path);
  auto node = std::make_shared<Node>();
  node->is_directory = true;
  change(parent_of(path), {"", leaf_of(path), node});
}

void SimulatedDisk::remove_directory(const std::string& path) {
  count(path);
  if (!get(path)->names.empty()) fail(ErrorKind::failure, "{}: cannot remove: it is not empty", path);
  change(parent_of(path), {leaf_of(path), "", nullptr});
}

void SimulatedDisk::sync_directory(const std::string& path) {
  count(path);
  const Link node = get(path);
  node->durable_names = node->names;
  node->pending.clear();
}

bool SimulatedDisk::exists(const std::string& path) {
  if (crash_at_ && operations_ >= *crash_at_) throw Crash();
  return find(path) != nullptr;
}

std::vector<DirectoryEntry> SimulatedDisk::list(const std::string& path) {
  std::vector<DirectoryEntry> entries;
  for (const auto& [name, node] : get(path)->names) entries.push_back({name, node->is_directory});
  return entries;
}

}  // namespace quaver
