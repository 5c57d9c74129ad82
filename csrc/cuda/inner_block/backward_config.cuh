// Sizes of the backward kernels of one configuration, the order of their packed weights, and where
// the sums over all tokens, the weight gradients, are kept.
#pragma once

#include "cuda/inner_block/backward_params.h"
#include "cuda/inner_block/config.cuh"
#include "cuda/tile/gradient.cuh"

namespace tnt_kernels::cuda {

// Who holds the sums in registers. kWarp: every warp all of them. kBlock: the warps of a block
// share them (band_sums.cuh). kThreads: the same, without tensor cores
// (attention_backward_plain.cuh). In all of these one launch makes the sums and dx. kSlices: a
// launch makes slices of them, each by blocks of its own that compute again only what the slice
// needs, and a launch without sums makes dx.
enum class Keep { kWarp, kBlock, kThreads, kSlices };

constexpr int kLanes = 32;

// What the warps of a block leave of a tile of tokens where the block keeps the sums, in words per
// lane: [tokens' inputs as columns][their gradients as columns][of each kind its bands]. A band is
// 16 rows of the weight gradients of one kind: a left operand.
template <int kUnitWords, int kInputs, int kKinds, int kBands>
struct StagedTile {
  static constexpr int kColumnWords = (2 * kInputs * kUnitWords + 3) / 4 * 4;
  static constexpr int kBandWords = 4 * kUnitWords;
  static constexpr int kFirstBand = 2 * kColumnWords;
  static constexpr int kWords = kLanes * (kFirstBand + kKinds * kBands * kBandWords);
};

// Sums of columns over a warp's rows.
template <int kInputs>
struct ColumnSums {
  float sum[kInputs][2];

  template <class Use>
  TNT_DEVICE void each(const Use& use) {
#pragma unroll
    for (int i = 0; i < 2 * kInputs; ++i) use(sum[i / 2][i % 2]);
  }
};

// What both halves share.
template <class Dtype_, int kTokens_, int kDim_>
struct BackwardConfig {
  using Dtype = Dtype_;
  using Math = typename Gradient<Dtype, kDim_>::Math;
  using Row = RowLayout<Dtype, kDim_>;
  static constexpr int kTokens = kTokens_, kDim = kDim_, kInputs = Row::kTiles;
  static constexpr int kUnitWords = Math::kUnitWords;
  static constexpr int kMostWords = 99 * 256;  // of shared memory that a block may have anywhere

  static constexpr int round_up_4(int words) { return (words + 3) / 4 * 4; }
  // Shared memory holds the weights, where they fit, and staged tiles; then the sums of
  // block_add_up.
  static constexpr bool fits(int packed_words, int staged_words) {
    return packed_words + staged_words <= kMostWords;
  }
  static constexpr int shared_bytes(int packed_words, int staged_words, int values) {
    const int words = staged_words + (fits(packed_words, staged_words) ? packed_words : 0);
    return 4 * (words > values * kLanes ? words : values * kLanes);
  }
  // Of a block: a multiprocessor has registers for 8 with 255 each.
  static constexpr int warps(Keep keep) { return keep == Keep::kBlock ? 4 : 8; }
};

// Hidden units go through in chunks of 16. Packed, in words per lane, a chunk is
//   [fc1 and fc2^T: input groups x 2 units each, of an odd number of groups the last behind both]
//   [biases as an accumulator has them][fc1^T: input groups x 2 units]
template <class Dtype, int kTokens, int kDim>
struct MlpBackward : BackwardConfig<Dtype, kTokens, kDim> {
  using Base = BackwardConfig<Dtype, kTokens, kDim>;
  static constexpr int kInputs = Base::kInputs, kUnitWords = Base::kUnitWords;
  static constexpr int kHidden = kHiddenPerDim * kDim;
  static constexpr int kChunks = (kHidden + 15) / 16;
  static constexpr Keep kKeep = kDim > 40                                      ? Keep::kSlices
                                : kDim < 24 || (kDim == 24 && kUnitWords == 1) ? Keep::kWarp
                                                                               : Keep::kBlock;
  static constexpr int kWarps = Base::warps(kKeep);
  static constexpr int kSliceChunks = kKeep == Keep::kSlices ? 1 : kChunks;
  static constexpr int kSlices = kChunks / kSliceChunks;

  // Kinds of bands: fc1 and fc2^T, a chunk each. Where not all chunks of a tile fit the shared
  // memory at once they go through in rounds.
  static constexpr int kKinds = 2, kBands = kChunks;
  static constexpr int kRoundBands = kDim > 24 && kUnitWords > 1 ? 6 : kBands;
  using Staged = StagedTile<kUnitWords, kInputs, kKinds, kRoundBands>;
  static constexpr int kStagedWords = kKeep == Keep::kBlock ? kWarps * Staged::kWords : 0;
  static constexpr int kUnrollStaged = kUnitWords > 1 ? 1 : 5;  // of the loop over chunks

  static constexpr int kEven = kInputs / 2 * 2;  // input groups in pairs
  static constexpr int kBiasWord = Base::round_up_4(4 * kInputs * kUnitWords);
  static constexpr int kTransposedWord = kBiasWord + 4;
  static constexpr int kChunkWords = kTransposedWord + Base::round_up_4(2 * kInputs * kUnitWords);
  static constexpr int kPackedWords = 32 * kChunks * kChunkWords;

  // First floats of the sums: gradients of the folded fc1 (H, C) and of fc2's transpose (H, C), and
  // of their biases.
  static constexpr int kFc1Sum = 0, kFc2Sum = kHidden * kDim;
  static constexpr int kFc1BiasSum = 2 * kHidden * kDim, kFc2BiasSum = kFc1BiasSum + kHidden;
  static constexpr int kSums = kFc2BiasSum + kDim;

  // A warp's own.
  struct Values {
    float fc1[kSliceChunks][kInputs][4], fc2[kSliceChunks][kInputs][4];
    float fc1_bias[kSliceChunks][2];
    ColumnSums<kInputs> fc2_bias;

    template <class Use>
    TNT_DEVICE void each(const Use& use) {
#pragma unroll
      for (int i = 0; i < kSliceChunks * kInputs * 4; ++i) {
        use(fc1[i / 4 / kInputs][i / 4 % kInputs][i % 4]);
        use(fc2[i / 4 / kInputs][i / 4 % kInputs][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 2 * kSliceChunks; ++i) use(fc1_bias[i / 2][i % 2]);
      fc2_bias.each(use);
    }
  };
  static constexpr int kValues =
      (kKeep == Keep::kBlock ? 0 : kSliceChunks * (8 * kInputs + 2)) + 2 * kInputs;

  static constexpr bool kWeightsInShared = Base::fits(kPackedWords, kStagedWords);
  static constexpr int kSharedBytes = Base::shared_bytes(kPackedWords, kStagedWords, kValues);
};

// Sums of attention, in floats: gradients of the folded q, k, v and of proj's transpose, each (C,
// C), and of the biases of q and proj. That of k is 0; for v see block_value_bias.
template <int kDim>
struct AttentionSums {
  static constexpr int kMatrices = 4;  // q, k, v, proj
  static constexpr int kQueryBiasSum = kMatrices * kDim * kDim;
  static constexpr int kProjBiasSum = kQueryBiasSum + kDim;
  static constexpr int kSums = kProjBiasSum + kDim;
};

// For S = 16. Heads go through in steps of one, or of two whose feature groups make pairs. Packed,
// in words per lane, a step is
//   [q, k, v, and proj^T, each as LinearLayout has it]
//   [q^T, k^T, v^T: input groups x feature groups units each][biases of q: feature groups x 2]
template <class Dtype, int kTokens, int kDim, int kHeads_>
struct AttentionBackward : BackwardConfig<Dtype, kTokens, kDim>, AttentionSums<kDim> {
  using Base = BackwardConfig<Dtype, kTokens, kDim>;
  using AttentionSums<kDim>::kMatrices;
  static constexpr int kInputs = Base::kInputs, kUnitWords = Base::kUnitWords;
  static constexpr int kHeads = kHeads_, kHeadDim = kDim / kHeads;
  static constexpr int kHeadGroups = (kHeadDim + 7) / 8;
  static constexpr int kStepHeads = kHeadGroups % 2 == 1 && kHeads % 2 == 0 ? 2 : 1;
  static constexpr int kGroups = kStepHeads * kHeadGroups;
  static constexpr int kSteps = kHeads / kStepHeads;
  static constexpr float kSoftmaxScale =
      static_cast<float>(1.4426950408889634 * inverse_square_root(kHeadDim));

  // Rows of weight gradients are made 16 at a time: two feature groups.
  static constexpr int kPairs = (kGroups + 1) / 2;
  static constexpr int kMostValues = kUnitWords > 1 ? 64 : 100;  // of a warp
  static constexpr Keep kKeep =
      kSteps * kPairs * kInputs * 16 <= kMostValues ? Keep::kWarp : Keep::kBlock;
  static constexpr int kWarps = Base::warps(kKeep), kSlices = 1;

  using Linear = LinearLayout<kGroups, kInputs, false>;
  static constexpr int kTransposedUnits = kGroups * kInputs;
  static constexpr int kTransposedWord = Base::round_up_4(4 * Linear::kUnits * kUnitWords);
  static constexpr int kBiasWord =
      kTransposedWord + Base::round_up_4(3 * kTransposedUnits * kUnitWords);
  static constexpr int kStepWords = kBiasWord + Base::round_up_4(2 * kGroups);
  static constexpr int kPackedWords = 32 * kSteps * kStepWords;

  // A warp's own.
  struct Values {
    float matrix[kSteps][kPairs][kMatrices][kInputs][4];
    float q_bias[kSteps][kPairs][2][2];  // [group][column]
    ColumnSums<kInputs> proj_bias;

    template <class Use>
    TNT_DEVICE void each(const Use& use) {
#pragma unroll
      for (int i = 0; i < kSteps * kPairs; ++i) {
#pragma unroll
        for (int j = 0; j < kMatrices * kInputs * 4; ++j) {
          use(matrix[i / kPairs][i % kPairs][j / 4 / kInputs][j / 4 % kInputs][j % 4]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) use(q_bias[i / kPairs][i % kPairs][j / 2][j % 2]);
      }
      proj_bias.each(use);
    }
  };
  static constexpr int kBandValues = kSteps * kPairs * (kMatrices * kInputs * 4 + 4);
  static constexpr int kValues = (kKeep == Keep::kBlock ? 0 : kBandValues) + 2 * kInputs;

  static constexpr int kKinds = kMatrices, kBands = kSteps * kPairs, kRoundBands = kBands;
  using Staged = StagedTile<kUnitWords, kInputs, kKinds, kRoundBands>;
  static constexpr int kStagedWords = kKeep == Keep::kBlock ? kWarps * Staged::kWords : 0;
  static constexpr bool kWeightsInShared = Base::fits(kPackedWords, kStagedWords);
  static constexpr int kSharedBytes = Base::shared_bytes(kPackedWords, kStagedWords, kValues);
};

// For other S, any number of heads. Packed as plain_attention_pack_body says.
template <class Dtype, int kTokens, int kDim>
struct PlainAttentionBackward : BackwardConfig<Dtype, kTokens, kDim>, AttentionSums<kDim> {
  static constexpr Keep kKeep = Keep::kThreads;
  static constexpr int kRows = kTokens > 16 ? kTokens : 16;  // tokens that a block takes at a time
  static constexpr int kWarps = 8, kSlices = 1;
  // Side of the square of a weight's gradient that a thread has: 4 weights, 256 threads.
  static constexpr int kSide = (kDim + 7) / 8;
  static constexpr int kMostHeads = kDim < 24 ? 2 : 8;
  static constexpr int kPackedWords = 7 * kDim * kDim + kDim;
  static constexpr int kSharedBytes =
      4 * (10 * kDim * kRows + 2 * kMostHeads * kRows * kTokens + kRows);
};

}  // namespace tnt_kernels::cuda
