/// Where kernels queue.
#pragma once

struct CUstream_st;

namespace quaver::cuda {

using Stream = CUstream_st*;  ///< a cudaStream_t

}  // namespace quaver::cuda
