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

// Rows are cut into ceil(N / kTileRows) blocks of nearly equal size: first row of block b.
TNT_INLINE int block_begin(int b, int num_blocks, int num_rows) {
  return static_cast<int>(int64_t{b} * num_rows / num_blocks);
}
TNT_INLINE int num_row_blocks(int num_rows) { return (num_rows + kTileRows - 1) / kTileRows; }

// Writes w(n, k) block by block, and within a block of R rows as [k][R]: the order of gemm().
template <class Element>
TNT_INLINE float* pack_rows(int num_rows, int num_k, Element w, float* packed) {
  const int num_blocks = num_row_blocks(num_rows);
  for (int b = 0; b < num_blocks; ++b) {
    const int begin = block_begin(b, num_blocks, num_rows);
    const int end = block_begin(b + 1, num_blocks, num_rows);
    for (int k = 0; k < num_k; ++k) {
      for (int n = begin; n < end; ++n) *packed++ = w(n, k);
    }
  }
  return packed;
}

template <int R, class Init, class Finish>
TNT_INLINE void gemm_block(int row, const float* w, const float* x, int num_k, Init init,
                           Finish finish) {
  constexpr int kStep = kTileVecs * kLanes;
  for (int token = 0; token < kChunk; token += kStep) {
    Vec acc[R][kTileVecs];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int q = 0; q < kTileVecs; ++q) acc[r][q] = init(row + r, token + q * kLanes);
    }
    multiply_tile<R, kTileVecs, R, 1, kChunk>(w, x + token, num_k, acc);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int q = 0; q < kTileVecs; ++q) finish(row + r, token + q * kLanes, acc[r][q]);
    }
  }
}

// For every row n of the packed weights and every vector of tokens: finish(n, token, sum), where
// the sum starts from init(n, token).
template <class Init, class Finish>
TNT_INLINE void gemm(int num_rows, int num_k, const float* packed, const float* x, Init init,
                     Finish finish) {
  const int num_blocks = num_row_blocks(num_rows);
  int row = 0;
  for (int b = 0; b < num_blocks; ++b) {
    const int end = block_begin(b + 1, num_blocks, num_rows);
    const float* w = packed + int64_t{row} * num_k;
    switch (end - row) {
      case 1:
        gemm_block<1>(row, w, x, num_k, init, finish);
        break;
      case 2:
        gemm_block<2>(row, w, x, num_k, init, finish);
        break;
      case 3:
        gemm_block<3>(row, w, x, num_k, init, finish);
        break;
      case 4:
        gemm_block<4>(row, w, x, num_k, init, finish);
        break;
      case 5:
        gemm_block<5>(row, w, x, num_k, init, finish);
        break;
      default:
        gemm_block<kTileRows>(row, w, x, num_k, init, finish);
    }
    row = end;
  }
}

}  // namespace tnt_kernels::cpu::TNT_ISA
