// Guarded copies of what an emulated kernel reads and writes.
#pragma once

#include <cstring>
#include <deque>
#include <set>
#include <string>
#include <vector>

#include "cuda/weight_view.h"
#include "emulator.h"

namespace emulation {

// A tensor's memory from its first to its last element; empty if absent.
struct Span {
  const void* data = nullptr;
  size_t bytes = 0;
};

// A weight: its memory, two strides and its type.
struct Weight {
  Span span;
  int64_t stride[2] = {0, 0};
  int type = 0;
};

// How a launch is run and where its buffers touch a page that faults.
struct Setting {
  int blocks = 2, warps = 2;
  bool reversed = false, guard_end = true;
};

class Buffers {
 public:
  explicit Buffers(const Setting& setting) : guard_end_(setting.guard_end) {}

  const void* input(const Span& span) {
    if (span.bytes == 0) return nullptr;
    buffers_.emplace_back(span.bytes, guard_end_);
    memcpy(buffers_.back().data(), span.data, span.bytes);
    buffers_.back().make_read_only();
    return buffers_.back().data();
  }

  // Filled with NaN.
  void* output(size_t bytes) {
    buffers_.emplace_back(bytes, guard_end_);
    memset(buffers_.back().data(), 0xff, bytes);
    return buffers_.back().data();
  }

  // An earlier output, which no kernel may write any more.
  void* finished() {
    buffers_.back().make_read_only();
    return buffers_.back().data();
  }

 private:
  bool guard_end_;
  std::deque<GuardedBuffer> buffers_;
};

inline tnt_kernels::cuda::WeightView view(Buffers& buffers, const Weight& weight) {
  return {buffers.input(weight.span),
          {weight.stride[0], weight.stride[1]},
          static_cast<tnt_kernels::cuda::DType>(weight.type)};
}

// Names of the bodies that ran.
inline std::set<std::string>& executed() {
  static std::set<std::string> names;
  return names;
}

inline std::string bytes_at(const void* data, size_t bytes) {
  return {static_cast<const char*>(data), bytes};
}

}  // namespace emulation
