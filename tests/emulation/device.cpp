#include "device.h"

#include <map>
#include <mutex>

namespace emulation {
namespace {

std::map<const void*, int>& allowed() {
  static std::map<const void*, int> bytes;
  return bytes;
}

// The emulator runs one launch at a time.
std::mutex busy;

}  // namespace

Device& device() {
  static Device device;
  return device;
}

bool allow_shared(const void* kernel, int bytes) {
  if (bytes > kMostSharedBytes) return false;
  const std::lock_guard<std::mutex> lock(busy);
  allowed()[kernel] = bytes;
  return true;
}

bool run_kernel(const void* kernel, int blocks, int threads, int shared_bytes,
                const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(busy);
  const auto asked = allowed().find(kernel);
  const int most = asked == allowed().end() ? kSharedBytesWithoutAsking : asked->second;
  const bool warps_are_whole = threads > 0 && threads <= 1024 && threads % kLanes == 0;
  if (blocks < 1 || !warps_are_whole || shared_bytes < 0 || shared_bytes > most) return false;
  run({blocks, threads / kLanes, static_cast<size_t>(shared_bytes), device().reversed}, body);
  return true;
}

}  // namespace emulation

// For ctypes.
extern "C" __attribute__((visibility("default"))) void set_emulated_device(int multiprocessors,
                                                                           bool reversed) {
  emulation::device() = {multiprocessors, reversed};
}
