// Runs a kernel body on a CPU, one fiber per thread.
//
// The 32 lanes of a warp run one after the other from one collective to the next; a collective is
// executed when its last lane arrives, and all must have arrived at the same one. Warps run in any
// order given, one at a time, from barrier to barrier. Shared memory starts as NaN and ends at a
// page that faults. Whatever goes wrong is thrown by run() as a Fault.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulation {

constexpr int kLanes = 32;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  int blocks = 1;
  int warps = 1;
  size_t shared_bytes = 0;
  bool reversed = false;  // warps and lanes in falling order
};

// Runs `body` once per thread of the launch.
void run(const Launch& launch, const std::function<void()>& body);

// ---- What a body's thread may ask, through cuda/warp.cuh ----------------------------------------

struct Thread {
  int lane, warp, block, warps, blocks;
};
const Thread& thread();
uint32_t* shared_memory();

// Stops the launch.
[[noreturn]] void fail(const std::string& what);

// Waits for the warp's other lanes, which must come with the same `kind`; the last to come runs
// `execute` on everyone's arguments.
void collective(int kind, void* arguments, void (*execute)(void* const* arguments));

void block_barrier();

// A barrier after which all know whether any thread said so.
bool block_any(bool x);

// Memory whose end, or beginning, touches one that faults; on both sides nothing else is mapped as
// far as an index may lead.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t bytes, bool guard_end);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() const { return data_; }
  void make_read_only();

 private:
  void protect(int access);

  char* first_page_;
  size_t usable_bytes_, mapped_bytes_;
  void* data_;
};

}  // namespace emulation
