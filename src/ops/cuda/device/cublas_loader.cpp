#include "ops/cuda/device/cublas_loader.h"

#include <dlfcn.h>

#include <string>

#include "base/check.h"

namespace quaver::cuda {

CublasFunctions load_cublas() {
  const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* const reason = dlerror();
    fail(ErrorKind::usage,
         "backend: cuda needs {} of the CUDA toolkit ({}); add its folder to LD_LIBRARY_PATH, or choose "
         "backend = "
         "\"cpu\"",
         name, reason ? reason : "not found");
  }
  CublasFunctions functions{};
  const auto find = [&](auto& function, const char* symbol) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
    require(function != nullptr, "backend: {} has no {}", name, symbol);
  };
  find(functions.create, "cublasLtCreate");
  find(functions.destroy, "cublasLtDestroy");
  find(functions.version, "cublasLtGetVersion");
  find(functions.status_string, "cublasLtGetStatusString");
  find(functions.create_matmul, "cublasLtMatmulDescCreate");
  find(functions.destroy_matmul, "cublasLtMatmulDescDestroy");
  find(functions.set_matmul, "cublasLtMatmulDescSetAttribute");
  find(functions.create_layout, "cublasLtMatrixLayoutCreate");
  find(functions.destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(functions.create_preference, "cublasLtMatmulPreferenceCreate");
  find(functions.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(functions.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  find(functions.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(functions.algorithm_attribute, "cublasLtMatmulAlgoConfigGetAttribute");
  find(functions.matmul, "cublasLtMatmul");
  return functions;
}

}  // namespace quaver::cuda
