// The emulated GPU that operators of csrc/cuda run on: its size, and what launches must respect.
#pragma once

#include <functional>

#include "emulator.h"

namespace emulation {

struct Device {
  int multiprocessors = 2;
  bool reversed = false;  // warps and lanes in falling order
};
Device& device();

constexpr int kCapabilityMajor = 9, kCapabilityMinor = 0;
constexpr int kMostSharedBytes = 227 * 1024, kSharedBytesWithoutAsking = 48 * 1024;

// As the runtime does when it is asked to let blocks of a kernel have so much shared memory; false
// if no block may.
bool allow_shared(const void* kernel, int bytes);

// As the runtime does at a launch; false if the shape is not one that the kernel may have.
bool run_kernel(const void* kernel, int blocks, int threads, int shared_bytes,
                const std::function<void()>& body);

}  // namespace emulation
