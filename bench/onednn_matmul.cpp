#include "onednn_matmul.h"

#ifdef QUAVER_HAVE_ONEDNN
#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

namespace quaver {
namespace {

using dnnl::memory;

memory filled(const dnnl::engine& engine, const memory::desc& desc) {
  memory result(desc, engine);
  auto* bytes = static_cast<unsigned char*>(result.get_data_handle());
  for (std::size_t i = 0; i < desc.get_size(); ++i) bytes[i] = i % 2 ? 0x3F : 0x80;  // 1.0 in BF16
  return result;
}

}  // namespace

void prepare_onednn(char** argv, int threads) {
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) {
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execvp(argv[0], argv);
  }
  if (threads > 0) omp_set_num_threads(threads);
}

std::string onednn_description() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
}

std::function<void()> onednn_matmul(Gemm kind, std::int64_t m, std::int64_t k, std::int64_t n) {
  using Tag = memory::format_tag;
  const auto type = memory::data_type::bf16;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  memory::desc a, b, out;
  if (kind == Gemm::fprop) {
    a = {{m, k}, type, Tag::ab}, b = {{k, n}, type, Tag::ba}, out = {{m, n}, type, Tag::ab};
  } else if (kind == Gemm::dgrad) {
    a = {{m, n}, type, Tag::ab}, b = {{n, k}, type, Tag::ab}, out = {{m, k}, type, Tag::ab};
  } else {
    a = {{n, m}, type, Tag::ba}, b = {{m, k}, type, Tag::ab}, out = {{n, k}, memory::data_type::f32, Tag::ab};
  }
  const dnnl::matmul::primitive_desc primitive({a, b, out}, engine);
  return [matmul = dnnl::matmul(primitive), stream = dnnl::stream(engine),
          arguments = std::unordered_map<int, memory>{{DNNL_ARG_SRC, filled(engine, a)},
                                                      {DNNL_ARG_WEIGHTS, filled(engine, b)},
                                                      {DNNL_ARG_DST, memory(out, engine)}}]() mutable {
    matmul.execute(stream, arguments);
    stream.wait();
  };
}

}  // namespace quaver

#else

namespace quaver {

void prepare_onednn(char**, int) {}
std::string onednn_description() {
  return "built without oneDNN";
}
std::function<void()> onednn_matmul(Gemm, std::int64_t, std::int64_t, std::int64_t) {
  return {};
}

}  // namespace quaver

#endif
