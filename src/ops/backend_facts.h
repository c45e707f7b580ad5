/// What each backend finds on this machine: the facts behind `quaver doctor`.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace quaver {

/// How a device multiplies matrices of one type.
struct TypeFact {
  std::string type;
  bool native = false;  ///< by instructions of its own
  std::string how;
};

struct DeviceFacts {
  std::string name;
  std::int64_t memory_bytes = 0, available_bytes = 0;  ///< 0: unknown
  /// What else is known, for people: ("threads", "2"), ("compute capability", "9.0").
  std::vector<std::pair<std::string, std::string>> details = {};
  std::vector<TypeFact> types = {};
};

struct LibraryFact {
  std::string name, version;
};

struct BackendFacts {
  std::string backend;
  std::string missing = {};  ///< why a run cannot use it; empty: it can
  std::vector<DeviceFacts> devices = {};
  std::vector<LibraryFact> libraries = {};
  bool usable() const { return missing.empty(); }
};

/// Of every backend that `make_backend` knows, in the order of `backend_names`. Throws nothing for what is missing.
std::vector<BackendFacts> find_backend_facts();

/// The backend to recommend for training, and why.
struct BackendChoice {
  std::string backend, why;
};
BackendChoice recommend_backend(const std::vector<BackendFacts>& facts);

// One per backend folder.
BackendFacts find_cpu_facts();
BackendFacts find_cuda_facts();

}  // namespace quaver
