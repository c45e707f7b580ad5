/// cuBLASLt's functions, loaded when first needed: a program built with CUDA also starts where it is missing.
#pragma once

#include <cublasLt.h>

namespace quaver::cuda {

struct CublasFunctions {
  decltype(&::cublasLtCreate) create;
  decltype(&::cublasLtDestroy) destroy;
  decltype(&::cublasLtGetVersion) version;
  decltype(&::cublasLtGetStatusString) status_string;
  decltype(&::cublasLtMatmulDescCreate) create_matmul;
  decltype(&::cublasLtMatmulDescDestroy) destroy_matmul;
  decltype(&::cublasLtMatmulDescSetAttribute) set_matmul;
  decltype(&::cublasLtMatrixLayoutCreate) create_layout;
  decltype(&::cublasLtMatrixLayoutDestroy) destroy_layout;
  decltype(&::cublasLtMatmulPreferenceCreate) create_preference;
  decltype(&::cublasLtMatmulPreferenceDestroy) destroy_preference;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) set_preference;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&::cublasLtMatmulAlgoConfigGetAttribute) algorithm_attribute;
  decltype(&::cublasLtMatmul) matmul;
};

/// Throws Error(usage) that says where the library was looked for.
CublasFunctions load_cublas();

}  // namespace quaver::cuda
