// The eight AMX tile registers. Written in assembly rather than with GCC's intrinsics, which do not
// tell the compiler that a tile load reads memory, so that stores before it may sink below it.
#pragma once

#include <stdint.h>

#define TNT_INLINE inline __attribute__((always_inline))

namespace tnt_kernels::cpu::amx {

constexpr int kTileRows = 16;
constexpr int64_t kRow = 64;  // bytes of a row: 16 fp32 or 32 bf16
constexpr int64_t kTile = kTileRows * kRow;

// What LDTILECFG reads (palette 1).
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

TNT_INLINE void tile_configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config));
}

TNT_INLINE void tile_release() { asm volatile("tilerelease"); }

template <int tile>
TNT_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}

template <int tile>
TNT_INLINE void tile_load(const char* source, int64_t row_stride = kRow) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(row_stride), "i"(tile)
               : "memory");
}

template <int tile>
TNT_INLINE void tile_store(char* target, int64_t row_stride = kRow) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(row_stride), "i"(tile)
               : "memory");
}

// sum += a * b: fp32 += bf16 * bf16. Row k of b holds the rows 2k and 2k + 1, interleaved.
template <int sum, int a, int b>
TNT_INLINE void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

}  // namespace tnt_kernels::cpu::amx
