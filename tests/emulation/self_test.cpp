// Small bodies that misuse the machine, each in one way: the emulator must stop every one.
#include "self_test.h"

#include <cstdio>
#include <fstream>

#include "cuda/warp.cuh"

namespace emulation {
namespace {

using namespace tnt_kernels::cuda;

void divergent_shuffle() {
  if (lane_id() < 16) warp_shuffle_xor<1>(1.0f);
}

void shuffles_with_different_masks() {
  if (lane_id() % 2 == 0) {
    warp_shuffle_xor<1>(1.0f);
  } else {
    warp_shuffle_xor<2>(1.0f);
  }
}

void barrier_in_one_warp() {
  if (warp_id() == 0) block_sync();
}

void barrier_in_half_a_warp() {
  if (lane_id() < 16) block_sync();
}

void warp_id_in_half_a_warp() {
  if (lane_id() < 16) warp_id();
}

void misaligned_vector_load() { load_words<4>(dynamic_shared() + 2); }

void read_past_shared_memory() {
  volatile float last = load_float(dynamic_shared() + 16);
  static_cast<void>(last);
}

// The pointer is no constant that a compiler could warn of.
void operand_that_is_no_tf32() {
  float d[4] = {};
  warp_mma_tf32_k8(d, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0000001f);
}

}  // namespace

std::map<std::string, void (*)()> misuses() {
  return {{"divergent shuffle", divergent_shuffle},
          {"shuffles with different masks", shuffles_with_different_masks},
          {"barrier in one warp", barrier_in_one_warp},
          {"barrier in half a warp", barrier_in_half_a_warp},
          {"warp id in half a warp", warp_id_in_half_a_warp},
          {"misaligned vector load", misaligned_vector_load},
          {"read past shared memory", read_past_shared_memory},
          {"operand that is no tf32 number", operand_that_is_no_tf32}};
}

std::vector<std::string> neighbours(size_t distance) {
  const GuardedBuffer buffer(4096, true);
  const uintptr_t at = reinterpret_cast<uintptr_t>(buffer.data());
  std::ifstream maps("/proc/self/maps");
  std::vector<std::string> found;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t first, end;
    char access[5];
    if (sscanf(line.c_str(), "%zx-%zx %4s", &first, &end, access) != 3) continue;
    const bool is_near = first < at + distance && end > at - distance;
    if (is_near && first != at && access[0] == 'r') found.push_back(line);
  }
  return found;
}

// Each warp writes a word of shared memory, passes the barrier and reads the next warp's.
bool shared_memory_works(const Launch& launch) {
  bool good = true;
  run(launch, [&] {
    uint32_t* words = dynamic_shared();
    if (words[warp_id()] != 0xffffffffu && lane_id() == 0) good = false;  // poison
    warp_shuffle_xor<1>(0.0f);
    words[warp_id()] = static_cast<uint32_t>(warp_id());
    block_sync();
    const int next = (warp_id() + 1) % launch.warps;
    if (words[next] != static_cast<uint32_t>(next)) good = false;
  });
  return good;
}

}  // namespace emulation
