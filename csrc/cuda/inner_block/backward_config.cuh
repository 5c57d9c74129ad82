// Sizes of the backward kernels of one configuration, the order of their packed weights, and how
// the sums over all tokens, the weight gradients, are dealt out.
//
// A warp keeps its weight gradients in registers. Where all fit (kOnePass) one launch makes
// them and dx. Where they do not, a launch makes slices of them, each by warps of its own that
// compute again only what the slice needs, and a launch without accumulators makes dx.
#pragma once

#include "cuda/inner_block/backward_params.h"
#include "cuda/inner_block/config.cuh"
#include "cuda/tile/gradient.cuh"

namespace tnt_kernels::cuda {

constexpr int kBackwardWarps = 8;

// What both halves share.
template <class Dtype_, int kTokens_, int kDim_>
struct BackwardConfig {
  using Dtype = Dtype_;
  using Math = typename Gradient<Dtype, kDim_>::Math;
  using Row = RowLayout<Dtype, kDim_>;
  static constexpr int kTokens = kTokens_, kDim = kDim_, kInputs = Row::kTiles;
  static constexpr int kWarps = kBackwardWarps;
  static constexpr int kUnitWords = Math::kUnitWords;
  static constexpr int kMostShared = 99 * 1024;  // what a block of any architecture may have

  static constexpr int round_up_4(int words) { return (words + 3) / 4 * 4; }
  static constexpr bool fits(int packed_words) { return packed_words * 4 <= kMostShared; }
  // Shared memory holds the weights, then the sums of block_add_up.
  static constexpr int shared_bytes(int packed_words, int values) {
    const int weights = fits(packed_words) ? packed_words * 4 : 0;
    return weights > values * 128 ? weights : values * 128;
  }
};

// Hidden units go through in chunks of 16. Packed, in words per lane, a chunk is
//   [fc1 and fc2^T: input groups x 2 units each, of an odd number of groups the last behind both]
//   [biases as an accumulator has them][fc1^T: input groups x 2 units]
template <class Dtype, int kTokens, int kDim>
struct MlpBackward : BackwardConfig<Dtype, kTokens, kDim> {
  using Base = BackwardConfig<Dtype, kTokens, kDim>;
  static constexpr int kInputs = Base::kInputs, kUnitWords = Base::kUnitWords;
  static constexpr int kHidden = kHiddenPerDim * kDim;
  static constexpr int kTiles = 1;  // of a warp
  static constexpr int kChunks = (kHidden + 15) / 16;
  static constexpr int kSliceChunks = kDim > 40 ? 1 : kDim > 24 || kUnitWords > 1 ? 2 : kChunks;
  static constexpr int kSlices = kChunks / kSliceChunks;
  static_assert(kChunks % kSliceChunks == 0, "slices must be equal");
  static constexpr bool kOnePass = kSlices == 1;

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
    float fc1_bias[kSliceChunks][2], fc2_bias[kInputs][2];

    template <class Use>
    TNT_DEVICE void each(const Use& use) {
#pragma unroll
      for (int i = 0; i < kSliceChunks * kInputs * 4; ++i) {
        use(fc1[i / 4 / kInputs][i / 4 % kInputs][i % 4]);
        use(fc2[i / 4 / kInputs][i / 4 % kInputs][i % 4]);
      }
#pragma unroll
      for (int i = 0; i < 2 * kSliceChunks; ++i) use(fc1_bias[i / 2][i % 2]);
#pragma unroll
      for (int i = 0; i < 2 * kInputs; ++i) use(fc2_bias[i / 2][i % 2]);
    }
  };
  static constexpr int kValues = kSliceChunks * (8 * kInputs + 2) + 2 * kInputs;

  static constexpr bool kWeightsInShared = Base::fits(kPackedWords);
  static constexpr int kSharedBytes = Base::shared_bytes(kPackedWords, kValues);
};

// Heads go through in steps of one, or of two whose feature groups make pairs. Packed, in words
// per lane, a step is
//   [q, k, v, and proj^T, each as LinearLayout has it]
//   [q^T, k^T, v^T: input groups x feature groups units each][biases of q: feature groups x 2]
template <class Dtype, int kTokens, int kDim, int kHeads_>
struct AttentionBackward : BackwardConfig<Dtype, kTokens, kDim> {
  using Base = BackwardConfig<Dtype, kTokens, kDim>;
  static constexpr int kInputs = Base::kInputs, kUnitWords = Base::kUnitWords;
  static constexpr int kHeads = kHeads_, kHeadDim = kDim / kHeads;
  static constexpr int kTiles = kTokens > 16 ? kTokens / 16 : 1;  // of a warp: whole sequences
  static constexpr int kHeadGroups = (kHeadDim + 7) / 8;
  static constexpr int kStepHeads = kHeadGroups % 2 == 1 && kHeads % 2 == 0 && kTiles == 1 ? 2 : 1;
  static constexpr int kGroups = kStepHeads * kHeadGroups;
  static constexpr int kSteps = kHeads / kStepHeads;
  static constexpr float kSoftmaxScale =
      static_cast<float>(1.4426950408889634 * inverse_square_root(kHeadDim));

  // Straight code, but where C is so wide that its sums do not fit the registers anyhow.
  static constexpr int kUnrollInputs = kDim > 40 ? 1 : kInputs;

  // Rows of weight gradients are made 16 at a time: two feature groups.
  static constexpr int kPairs = (kGroups + 1) / 2;
  static constexpr int kMostValues = kUnitWords > 1 ? 64 : 100;
  static constexpr bool kOnePass = kTiles == 1 && kSteps * kPairs * kInputs * 16 <= kMostValues;
  static constexpr int kSlices = kOnePass ? 1 : kSteps * kPairs;
  static constexpr int kSliceSteps = kOnePass ? kSteps : 1, kSlicePairs = kOnePass ? kPairs : 1;

  using Linear = LinearLayout<kGroups, kInputs, false>;
  static constexpr int kTransposedUnits = kGroups * kInputs;
  static constexpr int kTransposedWord = Base::round_up_4(4 * Linear::kUnits * kUnitWords);
  static constexpr int kBiasWord =
      kTransposedWord + Base::round_up_4(3 * kTransposedUnits * kUnitWords);
  static constexpr int kStepWords = kBiasWord + Base::round_up_4(2 * kGroups);
  static constexpr int kPackedWords = 32 * kSteps * kStepWords;

  // First floats of the sums: gradients of the folded q, k, v and of proj's transpose, each (C, C),
  // and of the biases of q and proj. That of k is 0; for v see block_value_bias.
  static constexpr int kMatrices = 4;  // q, k, v, proj
  static constexpr int kQueryBiasSum = kMatrices * kDim * kDim;
  static constexpr int kProjBiasSum = kQueryBiasSum + kDim;
  static constexpr int kSums = kProjBiasSum + kDim;

  // A warp's own.
  struct Values {
    float matrix[kSliceSteps][kSlicePairs][kMatrices][kInputs][4];
    float q_bias[kSliceSteps][kSlicePairs][2][2];  // [group][column]
    float proj_bias[kInputs][2];

    template <class Use>
    TNT_DEVICE void each(const Use& use) {
#pragma unroll
      for (int i = 0; i < kSliceSteps * kSlicePairs; ++i) {
#pragma unroll
        for (int j = 0; j < kMatrices * kInputs * 4; ++j) {
          use(matrix[i / kSlicePairs][i % kSlicePairs][j / 4 / kInputs][j / 4 % kInputs][j % 4]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          use(q_bias[i / kSlicePairs][i % kSlicePairs][j / 2][j % 2]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kInputs; ++i) use(proj_bias[i / 2][i % 2]);
    }
  };
  static constexpr int kValues =
      kSliceSteps * kSlicePairs * (kMatrices * kInputs * 4 + 4) + 2 * kInputs;

  static constexpr bool kWeightsInShared = Base::fits(kPackedWords);
  static constexpr int kSharedBytes = Base::shared_bytes(kPackedWords, kValues);
};

}  // namespace tnt_kernels::cuda
