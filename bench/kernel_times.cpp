// Times of everything that a program runs on a GPU, through CUPTI: a library that the driver loads beside any CUDA program.
//
//   CUDA_INJECTION64_PATH=build/cuda/bench/libkernel_times.so KERNEL_TIMES=times.tsv quaver bench step ...
//
// At exit times.tsv holds a line for each kernel, memset and copy, in the order in which they started, kernels of replayed graphs
// included: start and duration in ns, name. bench/kernel_times.py adds them up.

#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

struct Interval {
  std::uint64_t start;
  std::uint64_t end;
  const std::string* name;
};

// What CUPTI's thread hands over while the program runs. One for the process: CUPTI's callbacks carry no pointer of the caller's.
struct Recording {
  std::mutex mutex;
  std::vector<Interval> intervals;
  std::unordered_map<std::string, std::string> names;  // as linked -> as written; nodes stay where they are

  void add(std::uint64_t start, std::uint64_t end, const char* linked) {
    auto [entry, unknown] = names.try_emplace(linked);
    if (unknown) {
      int status = 0;
      char* written = abi::__cxa_demangle(linked, nullptr, nullptr, &status);
      entry->second = status == 0 ? written : linked;
      std::free(written);
    }
    intervals.push_back({start, end, &entry->second});
  }
};

Recording& recording() {
  static Recording* whole = new Recording;  // outlives every destructor: buffers may still come in at exit
  return *whole;
}

void require(CUptiResult result, const char* call) {
  if (result == CUPTI_SUCCESS) return;
  const char* reason = nullptr;
  cuptiGetResultString(result, &reason);
  std::fprintf(stderr, "kernel_times: %s: %s\n", call, reason ? reason : "unknown error");
  std::exit(1);
}

constexpr std::size_t kBufferBytes = 4 << 20;

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* bytes, std::size_t* most_records) {
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(ACTIVITY_RECORD_ALIGNMENT, kBufferBytes));
  *bytes = kBufferBytes;
  *most_records = 0;  // as many as fit
}

void CUPTIAPI take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t filled) {
  {
    const std::lock_guard lock(recording().mutex);
    CUpti_Activity* record = nullptr;
    while (cuptiActivityGetNextRecord(buffer, filled, &record) == CUPTI_SUCCESS) {
      if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const auto* kernel = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
        recording().add(kernel->start, kernel->end, kernel->name);
      } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const auto* fill = reinterpret_cast<const CUpti_ActivityMemset4*>(record);
        recording().add(fill->start, fill->end, "memset");
      } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const auto* copy = reinterpret_cast<const CUpti_ActivityMemcpy6*>(record);
        recording().add(copy->start, copy->end, "memcpy");
      }
    }
  }
  std::free(buffer);
}

void write_times() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  const std::lock_guard lock(recording().mutex);
  auto& intervals = recording().intervals;
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.start < b.start; });
  const char* path = std::getenv("KERNEL_TIMES");
  std::FILE* file = std::fopen(path ? path : "kernel_times.tsv", "w");
  if (!file) {
    std::perror("kernel_times: KERNEL_TIMES");
    return;
  }
  for (const Interval& interval : intervals)
    std::fprintf(file, "%llu\t%llu\t%s\n", static_cast<unsigned long long>(interval.start),
                 static_cast<unsigned long long>(interval.end - interval.start), interval.name->c_str());
  std::fclose(file);
}

}  // namespace

// Called by the driver when the program starts to use it.
extern "C" int InitializeInjection() {
  require(cuptiActivityRegisterCallbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  for (const auto kind :
       {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_MEMCPY})
    require(cuptiActivityEnable(kind), "cuptiActivityEnable");
  std::atexit(write_times);
  return 1;
}
