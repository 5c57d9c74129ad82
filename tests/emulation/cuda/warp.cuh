// The twin of csrc/cuda/warp.cuh: the same names on a CPU, for the bodies that tests run.
//
// Sums of an mma are exact before their one rounding; approximate functions are accurate. What
// differs on a GPU (order and truncation of sums, approximation error) is left to its own test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define TNT_DEVICE inline

namespace tnt_kernels::cuda {

template <int kCount>
struct Words {
  uint32_t w[kCount];
};

struct FloatPair {
  float lo, hi;
};

// ---- Threads and memory -----------------------------------------------------------------------

inline int lane_id() { return emulation::thread().lane; }
// A shuffle on a GPU, so that all lanes must come.
inline int warp_id() {
  constexpr int kWarpId = 1000;  // beyond the kinds of collectives below
  emulation::collective(kWarpId, nullptr, [](void* const*) {});
  return emulation::thread().warp;
}
inline int thread_id() { return 32 * emulation::thread().warp + emulation::thread().lane; }
inline int block_threads() { return 32 * emulation::thread().warps; }
inline int block_id() { return emulation::thread().block; }
inline int num_blocks() { return emulation::thread().blocks; }

inline void block_sync() { emulation::block_barrier(); }
inline bool block_any(bool x) { return emulation::block_any(x); }

inline uint32_t* dynamic_shared() { return emulation::shared_memory(); }

inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) emulation::fail("misaligned access");
}

template <int kCount>
inline Words<kCount> load_words(const void* address) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "no such vector access");
  check_aligned(address, 4 * kCount);
  Words<kCount> y;
  memcpy(&y, address, sizeof y);
  return y;
}

template <int kCount>
inline void store_words(void* address, const Words<kCount>& words) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "no such vector access");
  check_aligned(address, 4 * kCount);
  memcpy(address, &words, sizeof words);
}

inline uint16_t load_half_word(const void* address) {
  check_aligned(address, 2);
  uint16_t y;
  memcpy(&y, address, 2);
  return y;
}

inline void store_half_word(void* address, uint32_t low_bits) {
  check_aligned(address, 2);
  memcpy(address, &low_bits, 2);
}

inline float load_float(const void* address) {
  check_aligned(address, 4);
  float y;
  memcpy(&y, address, 4);
  return y;
}

inline void store_float(void* address, float value) {
  check_aligned(address, 4);
  memcpy(address, &value, 4);
}

// ---- Scalars ----------------------------------------------------------------------------------

inline float as_float(uint32_t bits) {
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

inline uint32_t as_word(float value) {
  uint32_t y;
  memcpy(&y, &value, 4);
  return y;
}

inline float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x; }

template <int kByte>
inline float byte_f32(uint32_t word) {
  return static_cast<float>(word >> 8 * kByte & 0xffu);
}

inline float fma_f32(float a, float b, float c) { return std::fma(a, b, c); }
inline float fma_sat_f32(float a, float b, float c) {
  return std::fmin(std::fmax(std::fma(a, b, c), 0.0f), 1.0f);
}
inline float max_f32(float a, float b) { return std::fmax(a, b); }
inline float erf_f32(float x) { return std::erf(x); }
inline float sqrt_f32(float x) { return std::sqrt(x); }
inline float abs_f32(float x) { return std::fabs(x); }
inline float round_tf32(float x) {
  return std::isfinite(x) ? as_float((as_word(x) + 0x1000u) & 0xffffe000u) : x;
}

inline float exp2_approx(float x) { return flush(std::exp2(flush(x))); }
inline float rsqrt_approx(float x) { return flush(1.0f / std::sqrt(flush(x))); }
inline float rcp_approx(float x) { return flush(1.0f / flush(x)); }

// ---- Pairs of 16-bit floats, the first in the low half ------------------------------------------

inline uint32_t half_bits(double x) {
  const _Float16 y = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &y, 2);
  return bits;
}

inline float half_value(uint32_t bits) {
  const uint16_t low = static_cast<uint16_t>(bits);
  _Float16 y;
  memcpy(&y, &low, 2);
  return static_cast<float>(y);
}

inline uint32_t bf16_bits(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t bits = as_word(x);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Applies `f` to the low and to the high halves.
template <class F>
inline uint32_t each_half(const F& f, uint32_t a, uint32_t b, uint32_t c = 0) {
  const uint32_t lo = half_bits(f(half_value(a), half_value(b), half_value(c)));
  const uint32_t hi = half_bits(f(half_value(a >> 16), half_value(b >> 16), half_value(c >> 16)));
  return hi << 16 | lo;
}

inline uint32_t pack_f16(float lo, float hi) { return half_bits(hi) << 16 | half_bits(lo); }
inline uint32_t pack_bf16(float lo, float hi) { return bf16_bits(hi) << 16 | bf16_bits(lo); }
inline FloatPair unpack_f16(uint32_t pair) { return {half_value(pair), half_value(pair >> 16)}; }
inline FloatPair unpack_bf16(uint32_t pair) {
  return {as_float(pair << 16), as_float(pair & 0xffff0000u)};
}

inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return each_half([](double x, double y, double) { return x * y; }, a, b);
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return each_half([](double x, double y, double z) { return x * y + z; }, a, b, c);
}
inline uint32_t fma_sat_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return each_half(
      [](double x, double y, double z) { return std::fmin(std::fmax(x * y + z, 0.0), 1.0); }, a, b,
      c);
}
inline uint32_t max_f16x2(uint32_t a, uint32_t b) {
  return each_half([](double x, double y, double) { return std::fmax(x, y); }, a, b);
}
inline uint32_t min_f16x2(uint32_t a, uint32_t b) {
  return each_half([](double x, double y, double) { return std::fmin(x, y); }, a, b);
}

// ---- Warp collectives ---------------------------------------------------------------------------

enum Collective {
  kShuffle = 0,
  kMmaHalf8 = 100,
  kMmaHalf16,
  kMmaHalfSum8,
  kMmaHalfSum16,
  kMmaTf32,
  kMmaBrain8,
  kMmaBrain16,
  kWarpSync,
  kShuffleAny,
  kTranspose
};

inline void warp_sync() {
  emulation::collective(kWarpSync, nullptr, [](void* const*) {});
}

struct ShuffleArguments {
  float value;
  int mask;
  float result;
};

inline void execute_shuffle(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* self = static_cast<ShuffleArguments*>(lanes[lane]);
    self->result = static_cast<ShuffleArguments*>(lanes[lane ^ self->mask])->value;
  }
}

template <int kLaneMask>
inline float warp_shuffle_xor(float x) {
  ShuffleArguments arguments = {x, kLaneMask, 0};
  emulation::collective(kShuffle + kLaneMask, &arguments, execute_shuffle);
  return arguments.result;
}

struct AnyShuffleArguments {
  float value;
  int source;
  float result;
};

inline void execute_any_shuffle(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* self = static_cast<AnyShuffleArguments*>(lanes[lane]);
    self->result = static_cast<AnyShuffleArguments*>(lanes[self->source])->value;
  }
}

inline float warp_shuffle(float x, int source) {
  AnyShuffleArguments arguments = {x, source, 0};
  if (source < 0 || source >= 32) emulation::fail("no such lane");
  emulation::collective(kShuffleAny, &arguments, execute_any_shuffle);
  return arguments.result;
}

struct TransposeArguments {
  uint32_t pair, result;
};

inline void execute_transpose(void* const* lanes) {
  const auto half = [&](int row, int column) {
    const uint32_t pair = static_cast<TransposeArguments*>(lanes[4 * row + column / 2])->pair;
    return pair >> 16 * (column % 2) & 0xffffu;
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int row = lane / 4, column = lane % 4 * 2;
    static_cast<TransposeArguments*>(lanes[lane])->result =
        half(column + 1, row) << 16 | half(column, row);
  }
}

inline uint32_t warp_transpose_b16(uint32_t pair) {
  TransposeArguments arguments = {pair, 0};
  emulation::collective(kTranspose, &arguments, execute_transpose);
  return arguments.result;
}

// One lane's fragments as numbers: its elements of the 16 x k and k x 8 operands and of d.
template <int kDepth>
struct MmaArguments {
  static constexpr int kA = kDepth / 2, kB = kDepth / 4;
  float a[kA], b[kB], d[4];
};

// Row and column, in the operand, of element i of lane (g, t). Elements of a 16-bit operand come as
// registers of two columns: rows g, g + 8 of columns 2t, 2t + 1, then of columns 8 further.
inline int half_row(int i, int g) { return g + i / 2 % 2 * 8; }
inline int half_column(int i, int t) { return 2 * t + i % 2 + i / 4 * 8; }
inline int half_depth(int i, int t) { return 2 * t + i % 2 + i / 2 * 8; }

template <int kDepth, bool kTf32, bool kHalfSum>
inline void execute_mma(void* const* lanes) {
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& in = *static_cast<MmaArguments<kDepth>*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < in.kA; ++i) {
      if (kTf32) a[g + i % 2 * 8][t + i / 2 * 4] = in.a[i];
      if (!kTf32) a[half_row(i, g)][half_column(i, t)] = in.a[i];
    }
    for (int i = 0; i < in.kB; ++i) b[kTf32 ? t + i * 4 : half_depth(i, t)][g] = in.b[i];
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto& out = *static_cast<MmaArguments<kDepth>*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = out.d[i];
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      out.d[i] = kHalfSum ? half_value(half_bits(sum)) : static_cast<float>(sum);
    }
  }
}

inline void set_pair(float* elements, uint32_t word) {
  elements[0] = half_value(word);
  elements[1] = half_value(word >> 16);
}

template <int kDepth>
inline MmaArguments<kDepth> half_arguments(const Words<2>* a, const uint32_t* b) {
  MmaArguments<kDepth> y;
  for (int i = 0; i < kDepth / 4; ++i) set_pair(y.a + 2 * i, a[i / 2].w[i % 2]);
  for (int i = 0; i < kDepth / 8; ++i) set_pair(y.b + 2 * i, b[i]);
  return y;
}

template <int kDepth>
inline void half_mma(int kind, float (&d)[4], const Words<2>* a, const uint32_t* b) {
  MmaArguments<kDepth> arguments = half_arguments<kDepth>(a, b);
  memcpy(arguments.d, d, sizeof d);
  emulation::collective(kind, &arguments, execute_mma<kDepth, false, false>);
  memcpy(d, arguments.d, sizeof d);
}

template <int kDepth>
inline void half_sum_mma(int kind, Words<2>& d, const Words<2>* a, const uint32_t* b) {
  MmaArguments<kDepth> arguments = half_arguments<kDepth>(a, b);
  set_pair(arguments.d, d.w[0]);
  set_pair(arguments.d + 2, d.w[1]);
  emulation::collective(kind, &arguments, execute_mma<kDepth, false, true>);
  d = {{pack_f16(arguments.d[0], arguments.d[1]), pack_f16(arguments.d[2], arguments.d[3])}};
}

inline void warp_mma_f16_k8(float (&d)[4], const Words<2>& a, uint32_t b) {
  half_mma<8>(kMmaHalf8, d, &a, &b);
}

inline void warp_mma_f16_k16(float (&d)[4], const Words<2>& a0, const Words<2>& a1, uint32_t b0,
                             uint32_t b1) {
  const Words<2> a[2] = {a0, a1};
  const uint32_t b[2] = {b0, b1};
  half_mma<16>(kMmaHalf16, d, a, b);
}

inline void warp_mma_f16_k8(Words<2>& d, const Words<2>& a, uint32_t b) {
  half_sum_mma<8>(kMmaHalfSum8, d, &a, &b);
}

inline void warp_mma_f16_k16(Words<2>& d, const Words<2>& a0, const Words<2>& a1, uint32_t b0,
                             uint32_t b1) {
  const Words<2> a[2] = {a0, a1};
  const uint32_t b[2] = {b0, b1};
  half_sum_mma<16>(kMmaHalfSum16, d, a, b);
}

template <int kDepth>
inline void brain_mma(int kind, float (&d)[4], const Words<2>* a, const uint32_t* b) {
  MmaArguments<kDepth> arguments;
  const auto set = [](float* elements, uint32_t word) {
    elements[0] = unpack_bf16(word).lo;
    elements[1] = unpack_bf16(word).hi;
  };
  for (int i = 0; i < kDepth / 4; ++i) set(arguments.a + 2 * i, a[i / 2].w[i % 2]);
  for (int i = 0; i < kDepth / 8; ++i) set(arguments.b + 2 * i, b[i]);
  memcpy(arguments.d, d, sizeof d);
  emulation::collective(kind, &arguments, execute_mma<kDepth, false, false>);
  memcpy(d, arguments.d, sizeof d);
}

inline void warp_mma_bf16_k8(float (&d)[4], const Words<2>& a, uint32_t b) {
  brain_mma<8>(kMmaBrain8, d, &a, &b);
}

inline void warp_mma_bf16_k16(float (&d)[4], const Words<2>& a0, const Words<2>& a1, uint32_t b0,
                              uint32_t b1) {
  const Words<2> a[2] = {a0, a1};
  const uint32_t b[2] = {b0, b1};
  brain_mma<16>(kMmaBrain16, d, a, b);
}

inline float check_tf32(float x) {
  if ((as_word(x) & 0x1fffu) != 0) emulation::fail("an mma operand is not a tf32 number");
  return x;
}

inline void warp_mma_tf32_k8(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                             float b1) {
  MmaArguments<8> arguments = {{check_tf32(a0), check_tf32(a1), check_tf32(a2), check_tf32(a3)},
                               {check_tf32(b0), check_tf32(b1)},
                               {d[0], d[1], d[2], d[3]}};
  emulation::collective(kMmaTf32, &arguments, execute_mma<8, true, false>);
  memcpy(d, arguments.d, sizeof d);
}

}  // namespace tnt_kernels::cuda
