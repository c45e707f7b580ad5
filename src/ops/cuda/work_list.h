/// Things to start on the device, one after another: kernels, copies, products.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace quaver::cuda {

/// Keeps a copy of each function object, side by side in one buffer: a step lists hundreds, and a std::function for each would
/// take its memory from the heap and give it back.
class WorkList {
 public:
  template <typename F>
  void add(const F& start) {
    static_assert(std::is_trivially_copyable_v<F> && std::is_trivially_destructible_v<F>);
    works_.push_back({&start_copy<F>, objects_.size()});
    const auto* const bytes = reinterpret_cast<const std::byte*>(&start);
    objects_.insert(objects_.end(), bytes, bytes + sizeof start);
  }
  std::size_t size() const { return works_.size(); }
  bool empty() const { return works_.empty(); }
  void clear() {
    works_.clear();
    objects_.clear();
  }
  void start() const {
    for (const Work& work : works_) work.start(objects_.data() + work.place);
  }

 private:
  struct Work {
    void (*start)(const std::byte*);
    std::size_t place;  // of its object in objects_
  };
  /// The bytes may lie at any address: the object is called where it is aligned.
  template <typename F>
  static void start_copy(const std::byte* bytes) {
    alignas(F) std::byte object[sizeof(F)];
    std::memcpy(object, bytes, sizeof(F));
    (*std::launder(reinterpret_cast<const F*>(object)))();
  }

  std::vector<Work> works_;
  std::vector<std::byte> objects_;
};

}  // namespace quaver::cuda
