// One configuration of the inner block: sizes, element type, and the order of its packed weights.
#pragma once

#include <type_traits>

#include "cuda/inner_block/params.h"
#include "cuda/tile/activation.cuh"
#include "cuda/tile/attention.cuh"

namespace tnt_kernels::cuda {

constexpr double inverse_square_root(double x) {
  double y = 1.0 / x;
  for (int i = 0; i < 50; ++i) y *= 1.5 - 0.5 * x * y * y;
  return y;
}

// kTokens (S), kDim (C) and kHeads as in the paper; kTilesPerWarp tiles of 16 tokens go through a
// warp together and share each weight fragment it reads.
template <class Dtype_, int kTokens_, int kDim_, int kHeads_, int kTilesPerWarp, int kWarps_,
          int kBlocksPerSm_>
struct InnerConfig {
  using Dtype = Dtype_;
  using Math = typename Dtype::Math;
  using Row = RowLayout<Dtype, kDim_>;
  static constexpr int kTokens = kTokens_, kDim = kDim_, kHeads = kHeads_;
  static constexpr int kTiles = kTilesPerWarp;
  static constexpr int kWarps = kWarps_, kBlocksPerSm = kBlocksPerSm_;
  static_assert(kDim % kHeads == 0, "heads must divide the width");

  // Tokens: a tile holds whole sequences, or a sequence takes kKeyTiles tiles.
  static constexpr int kKeyTiles = kTokens > 16 ? kTokens / 16 : 1;
  static_assert(kTokens % 16 == 0 || 16 % kTokens == 0, "tokens must fill tiles");
  static_assert(kTiles % kKeyTiles == 0, "a warp takes whole sequences");

  // Scores are taken in units of log2(e), so that the softmax is one exp2.
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr float kSoftmaxScale =
      static_cast<float>(kLog2e * inverse_square_root(kDim / kHeads));

  // Attention: heads are taken in steps whose feature groups fill pairs where they can.
  static constexpr int kHeadDim = kDim / kHeads;
  static constexpr int kHeadGroups = (kHeadDim + 7) / 8;
  static constexpr bool kPairsFit = kTokens <= 16 && (kDim <= 40 || kHeadGroups == 1);
  static constexpr int kStepHeads = kHeadGroups % 2 == 1 && kHeads % 2 == 0 && kPairsFit ? 2 : 1;
  static constexpr int kGroups = kStepHeads * kHeadGroups;
  static constexpr int kSteps = kHeads / kStepHeads;
  // A head's last group has a pad feature; it is 1 in every value, hence in every mean of values,
  // and carries the bias of proj. Without a pad the bias is added to the residual.
  static constexpr bool kPadCarriesBias = kHeadDim % 8 != 0;

  // MLP: hidden units go through in chunks of 4 groups of 8.
  static constexpr int kHidden = kHiddenPerDim * kDim;
  static constexpr int kChunkGroups = kDim > 40 ? 2 : 4;
  static constexpr int kChunks = (kHidden + 8 * kChunkGroups - 1) / (8 * kChunkGroups);

  // 16-bit kernels of the paper's models are straight code; where that is long and gains little
  // (three products for one, wide C), loops keep it in the instruction cache.
  static constexpr bool kStraight = Math::kUnitWords == 1 && kDim <= 40;
  static constexpr int kUnrollSteps = kStraight ? kSteps : 1;
  static constexpr int kUnrollChunks = kStraight ? kChunks : 1;

  // Packed weights, in units per lane. A step: [q][k][v: rows of two groups, interleaved; their
  // biases][proj]; a chunk: [fc1][fc2]. Both end on a multiple of 4 words. Then, in fp32 as
  // accumulators start, the biases of fc2 and, where no pad carries it, of proj.
  static constexpr int kInputs = Row::kTiles;
  using QueryLayout = LinearLayout<kGroups, kInputs, true>;
  using KeyLayout = LinearLayout<kGroups, kInputs, false>;
  using Fc1Layout = LinearLayout<kChunkGroups, kInputs, true>;
  static constexpr int kValueUnits = (kGroups + 1) / 2 * 2 * (kInputs + 1);
  static constexpr int kStepUnits =
      QueryLayout::kUnits + KeyLayout::kUnits + kValueUnits + kInputs * kGroups;
  static constexpr int kChunkUnits = Fc1Layout::kUnits + kInputs * kChunkGroups;
  static constexpr int round_up_4(int words) { return (words + 3) / 4 * 4; }
  static constexpr int kStepWords = round_up_4(kStepUnits * Math::kUnitWords);
  static constexpr int kChunkWords = round_up_4(kChunkUnits * Math::kUnitWords);
  static constexpr int kBiasWords = 4 * kInputs;

  // First words.
  static constexpr int kFirstChunk = kSteps * kStepWords;
  static constexpr int kFc2Bias = kFirstChunk + kChunks * kChunkWords;
  static constexpr int kProjBias = kFc2Bias + kBiasWords;
  static constexpr int kLaneWords = kProjBias + (kPadCarriesBias ? 0 : kBiasWords);
  static constexpr int kPackedWords = 32 * kLaneWords;

  // Weights are read from shared memory where a block of any architecture may have that much (99
  // KB), else through the L1 cache, which serves the same 16-byte reads.
  static constexpr bool kWeightsInShared = kPackedWords * 4 <= 99 * 1024;
  static constexpr int kWeightBytes = kWeightsInShared ? kPackedWords * 4 : 0;

  // bf16 tensors go through fp16 operands. Weights that could leave fp16's range, which the word
  // behind the packed ones says, take the path of wide_range.cuh, in the same kernel.
  static constexpr bool kMayLeaveRange = std::is_same_v<Math, FastHalf>;
  static constexpr int kBufferWords = kPackedWords + 4;
  static constexpr int kWideArrays = 2 + kHiddenPerDim;  // of a patch, in floats
  static constexpr int kWideBytes = kMayLeaveRange ? kWideArrays * kTokens * kDim * 4 : 0;
  static constexpr int kSharedBytes = kWeightBytes > kWideBytes ? kWeightBytes : kWideBytes;
};

}  // namespace tnt_kernels::cuda
