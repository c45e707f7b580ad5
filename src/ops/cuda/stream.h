/// Where operations queue.
#pragma once

struct CUstream_st;

namespace quaver::cuda {

using DeviceStream = CUstream_st*;  ///< a cudaStream_t

class WorkQueue;
using Stream = WorkQueue*;  ///< null: at once, on the device's default stream

}  // namespace quaver::cuda
