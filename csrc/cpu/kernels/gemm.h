// Products of a small matrix with a chunk of tokens held channel-major: the tokens are the lanes.
//
//   y[n][token] = init + sum_k w[n][k] x[k][token]
//
// A tile of kTileRows rows n times kTileVecs vectors of tokens stays in registers; each weight is
// broadcast once and used kTileVecs times, each vector of x is loaded once and used kTileRows
// times. So loads stay well below the multiplications, whatever N and K are.
#pragma once

#include "cpu/inner_block.h"
#include "cpu/simd.h"

namespace tnt_kernels::cpu::TNT_ISA {

constexpr int kTileRows = 6;
constexpr int kTileVecs = kRegisters == 32 ? 4 : 2;
constexpr int kChunk = kChunkTokens;  // tokens in a row of a chunk, and the stride between rows

// acc[r][q] += sum_k w[k * kWStep + r * kWRow] x[k * kXStep + q * kLanes .. + kLanes]
template <int R, int Q, int kWStep, int kWRow, int kXStep>
TNT_INLINE void multiply_tile(const float* w, const float* x, int num_k, Vec (&acc)[R][Q]) {
#pragma GCC unroll 2
  for (int k = 0; k < num_k; ++k) {
    Vec x_k[Q];
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) x_k[q] = load(x + int64_t{k} * kXStep + q * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec w_rk = splat(w[int64_t{k} * kWStep + r * kWRow]);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) acc[r][q] = fma(w_rk, x_k[q], acc[r][q]);
    }
  }
}

// Rows are cut into the fewest blocks of at most kTileRows, as equal as can be: the first `larger`
// blocks have `rows` rows, the others one less.
struct RowBlocks {
  int count, rows, larger;
};
TNT_INLINE RowBlocks row_blocks(int num_rows) {
  const int count = (num_rows + kTileRows - 1) / kTileRows;
  const int rows = (num_rows + count - 1) / count;
  return {count, rows, num_rows - count * (rows - 1)};
}

// Writes w(n, k) block by block, and within a block of R rows as [k][R]: the order of gemm().
template <class Element>
TNT_INLINE float* pack_rows(int num_rows, int num_k, Element w, float* packed) {
  const RowBlocks blocks = row_blocks(num_rows);
  int row = 0;
  for (int b = 0; b < blocks.count; ++b) {
    const int end = row + blocks.rows - (b >= blocks.larger);
    for (int k = 0; k < num_k; ++k) {
      for (int n = row; n < end; ++n) *packed++ = w(n, k);
    }
    row = end;
  }
  return packed;
}

// Longer sums are cut into parts that start from zero, so that rounding errors stay those of a sum
// this long.
constexpr int kMaxSum = 48;

TNT_INLINE int sum_part(int num_k) {
  const int parts = (num_k + kMaxSum - 1) / kMaxSum;
  return (num_k + parts - 1) / parts;
}

// The sums over k of all parts but the last go to sums[R][kTileVecs][kLanes]. A function of its
// own: inlined, it would cost gemm_block the registers of its sums.
template <int R>
__attribute__((noinline)) void sum_leading_parts(const float* w, const float* x, int num_k,
                                                 int part, float* sums) {
  for (int k = 0; k + part < num_k; k += part) {
    Vec acc[R][kTileVecs] = {};
    multiply_tile<R, kTileVecs, R, 1, kChunk>(w + k * R, x + k * kChunk, part, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int q = 0; q < kTileVecs; ++q) {
        float* at = sums + (r * kTileVecs + q) * kLanes;
        store(at, k == 0 ? acc[r][q] : load(at) + acc[r][q]);
      }
    }
  }
}

// What becomes of a sum over k at row n and a vector of tokens of out:
enum class Write {
  kSet,       // out = sum
  kBias,      // out = bias[n] + sum
  kAdd,       // out += sum
  kMultiply,  // out *= sum
  kResidual,  // out += scale * (bias[n] + sum)
};

// Not inlined: the compiler keeps the sums in registers only if nothing else competes for them. Nor
// does it take a closure: loads of captured pointers can collide with the previous block's stores,
// 4096 bytes apart or so, and then wait for them.
template <int R, Write kWrite>
__attribute__((noinline)) void gemm_block(const float* packed, const float* tile, int num_k,
                                          float* out, const float* bias, const float* scale) {
  constexpr bool kHasBias = kWrite == Write::kBias || kWrite == Write::kResidual;
  constexpr int kStep = kTileVecs * kLanes;
  const int part = sum_part(num_k);
  const int last = num_k - (num_k - 1) / part * part;  // terms in the last part
  for (int token = 0; token < kChunk; token += kStep) {
    float sums[R * kStep];
    if (last < num_k) sum_leading_parts<R>(packed, tile + token, num_k, part, sums);
    Vec acc[R][kTileVecs];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int q = 0; q < kTileVecs; ++q) acc[r][q] = kHasBias ? splat(bias[r]) : zero();
    }
    const int done = num_k - last;
    multiply_tile<R, kTileVecs, R, 1, kChunk>(packed + done * R, tile + done * kChunk + token, last,
                                              acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int q = 0; q < kTileVecs; ++q) {
        Vec sum = acc[r][q];
        if (last < num_k) sum = sum + load(sums + (r * kTileVecs + q) * kLanes);
        const int t = token + q * kLanes;
        float* at = out + r * kChunk + t;
        if (kWrite == Write::kAdd) sum = load(at) + sum;
        if (kWrite == Write::kMultiply) sum = load(at) * sum;
        if (kWrite == Write::kResidual) sum = fma(sum, load(scale + t), load(at));
        store(at, sum);
      }
    }
  }
}

template <Write kWrite>
TNT_INLINE void gemm_rows(int rows, const float* w, const float* x, int num_k, float* out,
                          const float* bias, const float* scale) {
  switch (rows) {
    case 1:
      return gemm_block<1, kWrite>(w, x, num_k, out, bias, scale);
    case 2:
      return gemm_block<2, kWrite>(w, x, num_k, out, bias, scale);
    case 3:
      return gemm_block<3, kWrite>(w, x, num_k, out, bias, scale);
    case 4:
      return gemm_block<4, kWrite>(w, x, num_k, out, bias, scale);
    case 5:
      return gemm_block<5, kWrite>(w, x, num_k, out, bias, scale);
    case 6:
      return gemm_block<6, kWrite>(w, x, num_k, out, bias, scale);
    default:
      return;
  }
}

// The product of the packed (num_rows, num_k) weights with the rows of x, written to those of out.
// bias: (num_rows); scale: (kChunk); each only where kWrite uses it.
template <Write kWrite>
inline void gemm(int num_rows, int num_k, const float* packed, const float* x, float* out,
                 const float* bias = nullptr, const float* scale = nullptr) {
  const RowBlocks blocks = row_blocks(num_rows);
  for (int b = 0; b < blocks.count; ++b) {
    const int rows = blocks.rows - (b >= blocks.larger);
    gemm_rows<kWrite>(rows, packed, x, num_k, out, bias, scale);
    packed += rows * num_k;
    out += rows * kChunk;
    if (bias != nullptr) bias += rows;
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
