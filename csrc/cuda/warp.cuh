// What kernel bodies may use of the machine: thread ids, barriers, shared memory, vector loads,
// shuffles, mma, conversions and packed arithmetic. The only file with PTX; tests/emulation/cuda
// has its twin, with which the same bodies run on a CPU.
//
// Fragments follow mma.sync: lane = 4 g + t with g in 0..7 and t in 0..3. A 16x8 accumulator gives
// a lane the elements (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). Functions that begin with
// warp_ or block_ are collectives: every lane of the warp, or of the block, calls them together.
#pragma once

#include <cstdint>

#define TNT_DEVICE __device__ __forceinline__

namespace tnt_kernels::cuda {

template <int kCount>
struct Words {
  uint32_t w[kCount];
};

struct FloatPair {
  float lo, hi;
};

// ---- Threads and memory -----------------------------------------------------------------------

TNT_DEVICE int lane_id() { return static_cast<int>(threadIdx.x % 32); }
TNT_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
// The same in all lanes, and known to the compiler to be: what follows from it is computed once per
// warp, and branches on it do not diverge. All lanes of a warp call it together.
TNT_DEVICE int warp_id() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0); }
TNT_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
TNT_DEVICE int block_id() { return static_cast<int>(blockIdx.x); }
TNT_DEVICE int num_blocks() { return static_cast<int>(gridDim.x); }

TNT_DEVICE void block_sync() { __syncthreads(); }
// Whether any thread of the block says so; a barrier too.
TNT_DEVICE bool block_any(bool x) { return __syncthreads_or(x) != 0; }
TNT_DEVICE void warp_sync() { __syncwarp(); }

TNT_DEVICE uint32_t* dynamic_shared() {
  extern __shared__ uint4 tnt_dynamic_shared[];
  return reinterpret_cast<uint32_t*>(tnt_dynamic_shared);
}

// kCount words (1, 2 or 4) from an address aligned to their size.
template <int kCount>
TNT_DEVICE Words<kCount> load_words(const void* address) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "no such vector access");
  if constexpr (kCount == 1) {
    return {{*static_cast<const uint32_t*>(address)}};
  } else if constexpr (kCount == 2) {
    const uint2 v = *static_cast<const uint2*>(address);
    return {{v.x, v.y}};
  } else {
    const uint4 v = *static_cast<const uint4*>(address);
    return {{v.x, v.y, v.z, v.w}};
  }
}

template <int kCount>
TNT_DEVICE void store_words(void* address, const Words<kCount>& words) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "no such vector access");
  if constexpr (kCount == 1) {
    *static_cast<uint32_t*>(address) = words.w[0];
  } else if constexpr (kCount == 2) {
    *static_cast<uint2*>(address) = make_uint2(words.w[0], words.w[1]);
  } else {
    *static_cast<uint4*>(address) = make_uint4(words.w[0], words.w[1], words.w[2], words.w[3]);
  }
}

TNT_DEVICE uint16_t load_half_word(const void* address) {
  return *static_cast<const uint16_t*>(address);
}

TNT_DEVICE void store_half_word(void* address, uint32_t low_bits) {
  *static_cast<uint16_t*>(address) = static_cast<uint16_t>(low_bits);
}

TNT_DEVICE float load_float(const void* address) { return *static_cast<const float*>(address); }

TNT_DEVICE void store_float(void* address, float value) { *static_cast<float*>(address) = value; }

// ---- Scalars ----------------------------------------------------------------------------------

TNT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
TNT_DEVICE uint32_t as_word(float value) { return __float_as_uint(value); }

// Byte kByte of a word, the lowest being 0, as a number.
template <int kByte>
TNT_DEVICE float byte_f32(uint32_t word) {
  static_assert(kByte >= 0 && kByte < 4, "a word has 4 bytes");
  // conversions take the outer bytes from a word themselves
  if constexpr (kByte == 0) return static_cast<float>(word & 0xffu);
  if constexpr (kByte == 3) return static_cast<float>(word >> 24);
  return static_cast<float>(__byte_perm(word, 0, 0x4440 + kByte));
}

TNT_DEVICE float fma_f32(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Clamped to [0, 1]; NaN becomes 0.
TNT_DEVICE float fma_sat_f32(float a, float b, float c) {
  float y;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}
TNT_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }  // the one that is not NaN
TNT_DEVICE float erf_f32(float x) { return erff(x); }
TNT_DEVICE float sqrt_f32(float x) { return sqrtf(x); }
TNT_DEVICE float abs_f32(float x) { return fabsf(x); }

// The nearest tf32 number (8 bits of exponent, 10 of fraction), ties away from 0; NaN stays NaN.
TNT_DEVICE float round_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return as_float(y);
}

TNT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

TNT_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

TNT_DEVICE float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Pairs of 16-bit floats, the first in the low half ------------------------------------------

TNT_DEVICE uint32_t pack_f16(float lo, float hi) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
}

TNT_DEVICE uint32_t pack_bf16(float lo, float hi) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
  return y;
}

TNT_DEVICE FloatPair unpack_f16(uint32_t pair) {
  FloatPair y;
  asm("{.reg .b16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi;}"
      : "=f"(y.lo), "=f"(y.hi)
      : "r"(pair));
  return y;
}

TNT_DEVICE FloatPair unpack_bf16(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

TNT_DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

TNT_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
}

// Clamped to [0, 1]; NaN becomes 0.
TNT_DEVICE uint32_t fma_sat_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  asm("fma.rn.sat.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
}

// Of a number and NaN, the number.
TNT_DEVICE uint32_t max_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("max.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

TNT_DEVICE uint32_t min_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("min.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}

// ---- Warp collectives ---------------------------------------------------------------------------

template <int kLaneMask>
TNT_DEVICE float warp_shuffle_xor(float x) {
  return __shfl_xor_sync(0xffffffffu, x, kLaneMask);
}

// x of the lane `source`, which may differ between lanes.
TNT_DEVICE float warp_shuffle(float x, int source) { return __shfl_sync(0xffffffffu, x, source); }

// Of an 8x8 matrix of 16-bit elements, of which a lane holds row g, columns 2t and 2t + 1, the
// transposed one.
TNT_DEVICE uint32_t warp_transpose_b16(uint32_t pair) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(pair));
  return y;
}

// d += a b with fp16 operands: a is 16 x k, its registers the rows g and g + 8 of columns 2t, 2t +
// 1 (and of 2t + 8, 2t + 9 in the second pair); b is k x 8, its registers rows 2t, 2t + 1 (and + 8)
// of column g.
TNT_DEVICE void warp_mma_f16_k8(float (&d)[4], const Words<2>& a, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.w[0]), "r"(a.w[1]), "r"(b));
}

TNT_DEVICE void warp_mma_f16_k16(float (&d)[4], const Words<2>& a0, const Words<2>& a1, uint32_t b0,
                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0.w[0]), "r"(a0.w[1]), "r"(a1.w[0]), "r"(a1.w[1]), "r"(b0), "r"(b1));
}

// The same with bf16 operands.
TNT_DEVICE void warp_mma_bf16_k8(float (&d)[4], const Words<2>& a, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.w[0]), "r"(a.w[1]), "r"(b));
}

TNT_DEVICE void warp_mma_bf16_k16(float (&d)[4], const Words<2>& a0, const Words<2>& a1,
                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0.w[0]), "r"(a0.w[1]), "r"(a1.w[0]), "r"(a1.w[1]), "r"(b0), "r"(b1));
}

// warp_mma_f16 with an fp16 accumulator: row g in d.w[0], row g + 8 in d.w[1].
TNT_DEVICE void warp_mma_f16_k8(Words<2>& d, const Words<2>& a, uint32_t b) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3}, {%4}, {%0, %1};"
      : "+r"(d.w[0]), "+r"(d.w[1])
      : "r"(a.w[0]), "r"(a.w[1]), "r"(b));
}

TNT_DEVICE void warp_mma_f16_k16(Words<2>& d, const Words<2>& a0, const Words<2>& a1, uint32_t b0,
                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, "
      "{%0, %1};"
      : "+r"(d.w[0]), "+r"(d.w[1])
      : "r"(a0.w[0]), "r"(a0.w[1]), "r"(a1.w[0]), "r"(a1.w[1]), "r"(b0), "r"(b1));
}

// d += a b with tf32 operands: a is 16 x 8 with rows g, g + 8 of column t, then of column t + 4; b
// is 8 x 8 with rows t and t + 4 of column g. The lower 13 bits of an operand must be 0.
TNT_DEVICE void warp_mma_tf32_k8(float (&d)[4], float a0, float a1, float a2, float a3, float b0,
                                 float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(as_word(a0)), "r"(as_word(a1)), "r"(as_word(a2)), "r"(as_word(a3)), "r"(as_word(b0)),
        "r"(as_word(b1)));
}

}  // namespace tnt_kernels::cuda
