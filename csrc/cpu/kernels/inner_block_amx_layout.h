// Shapes and memory layout of the AMX forward of the inner block; see inner_block_amx.h.
#pragma once

#include "cpu/kernels/amx_tile.h"

namespace tnt_kernels::cpu::amx {

// Attention runs over so many tiles, then the MLP over the same: the weights of one of them and the
// operands of a few tiles then fit the first-level cache.
constexpr int kBlockTiles = 16;

constexpr int kMaxDim = 128, kMaxHidden = 1024;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int max(int a, int b) { return a > b ? a : b; }

// (S, C, heads, H) as constants, for the shapes that deserve code of their own, and as variables.
template <int kTokens, int kDim, int kHeads, int kHidden>
struct FixedDims {
  static constexpr int tokens() { return kTokens; }
  static constexpr int dim() { return kDim; }
  static constexpr int heads() { return kHeads; }
  static constexpr int hidden() { return kHidden; }
};
struct AnyDims {
  int num_tokens, num_channels, num_heads, num_hidden;
  constexpr int tokens() const { return num_tokens; }
  constexpr int dim() const { return num_channels; }
  constexpr int heads() const { return num_heads; }
  constexpr int hidden() const { return num_hidden; }
};

// What follows from them.
template <class Dims>
struct Shape : Dims {
  using Dims::dim, Dims::heads, Dims::hidden, Dims::tokens;
  constexpr explicit Shape(Dims dims) : Dims(dims) {}

  // A tile holds 16 tokens; a unit the fewest tiles that hold whole sequences: 16 / S sequences in
  // one tile, or one sequence in S / 16.
  constexpr int unit_sequences() const { return tokens() < 16 ? 16 / tokens() : 1; }
  constexpr int unit_tiles() const { return tokens() > 16 ? tokens() / 16 : 1; }
  constexpr int block_units() const { return max(1, kBlockTiles / unit_tiles()); }

  constexpr int head_dim() const { return dim() / heads(); }
  // Rows of q, and of k, per head: channels come in pairs.
  constexpr int head_rows() const { return (head_dim() + 1) & ~1; }
  // Scores: the channel pairs of a head and one constant pair, four pairs to a step.
  constexpr int score_steps() const { return ceil_div(head_rows() / 2 + 1, 4); }
  // Two heads share one product with their probabilities: a row of sums and C / heads rows each.
  constexpr int head_pairs() const { return ceil_div(heads(), 2); }
  constexpr int value_tiles() const { return ceil_div(2 + 2 * head_dim(), 16); }

  constexpr int v_row() const { return 2 * heads() * head_rows(); }
  constexpr int qkv_tiles() const { return ceil_div(v_row() + dim(), 16); }
  constexpr int dim_tiles() const { return ceil_div(dim(), 16); }
  constexpr int hidden_tiles() const { return ceil_div(hidden(), 16); }

  // Steps of 32 over the C channels and the two that carry the bias, and over H.
  constexpr int dim_steps() const { return ceil_div(dim() + 2, 32); }
  constexpr int hidden_pairs() const { return ceil_div(hidden(), 2); }
  constexpr int hidden_steps() const { return ceil_div(hidden(), 32); }
};

// Packed weights: tiles of 16 outputs x 32 inputs, bf16.
struct PackedHeader {
  bool bounded_scores;
};
struct PackedLayout {
  int64_t header, qkv, proj, fc1, fc2, fc2_bias, bytes;

  template <class S>
  constexpr explicit PackedLayout(S s)
      : header(0),
        qkv(kRow),
        proj(qkv + kTile * s.qkv_tiles() * s.dim_steps()),
        fc1(proj + kTile * s.dim_tiles() * s.dim_steps()),
        fc2(fc1 + kTile * s.hidden_tiles() * s.dim_steps()),
        fc2_bias(fc2 + kTile * s.dim_tiles() * s.hidden_steps()),
        bytes(fc2_bias + kRow * s.dim_tiles()) {}
};

// A thread's scratch.
struct ScratchLayout {
  // Per unit of a block, `unit_bytes` apart: for each tile C rows of the residual stream (fp32;
  // before attention is added, the last C / 2 of them hold the pairs of x), and its LayerNorm.
  int64_t mid, normed2, unit_bytes;
  // Operands that one unit after the other goes through; v and probs in two copies.
  int64_t normed1, q, k, v, v_bytes, probs, probs_bytes, mixed, hidden;
  // Sums that products write and the arithmetic after them reads.
  int64_t qkv_sums, score_sums, value_sums, hidden_sums, dim_sums;
  int64_t staging;  // the tokens of a tile that is not full
  int64_t bytes;

  template <class S>
  constexpr explicit ScratchLayout(S s)
      : mid(0),
        normed2(kRow * s.unit_tiles() * s.dim()),
        unit_bytes(normed2 + kTile * s.unit_tiles() * s.dim_steps()),
        normed1(unit_bytes * s.block_units()),
        q(normed1 + kTile * s.unit_tiles() * s.dim_steps()),
        k(q + kRow * 4 * s.unit_tiles() * s.heads() * s.score_steps()),
        v(k + kRow * 4 * s.unit_tiles() * s.heads() * s.score_steps()),
        v_bytes(kTile * s.unit_tiles() * s.head_pairs() * s.value_tiles()),
        probs(v + 2 * v_bytes),
        probs_bytes(kTile * s.unit_tiles() * s.unit_tiles() * s.head_pairs()),
        mixed(probs + 2 * probs_bytes),
        hidden(mixed + kTile * s.unit_tiles() * s.dim_steps()),
        qkv_sums(hidden + kTile * s.unit_tiles() * s.hidden_steps()),
        score_sums(qkv_sums + kTile * s.unit_tiles() * s.qkv_tiles()),
        value_sums(score_sums + kTile * s.unit_tiles() * s.unit_tiles() * s.heads()),
        hidden_sums(value_sums + kTile * s.unit_tiles() * s.head_pairs() * s.value_tiles()),
        dim_sums(hidden_sums + kTile * s.unit_tiles() * s.hidden_tiles()),
        staging(dim_sums + kTile * s.unit_tiles() * s.dim_tiles()),
        bytes(staging + kRow * s.dim()) {}
};

}  // namespace tnt_kernels::cpu::amx
