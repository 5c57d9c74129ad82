// How a call of pixel_embed is cut into work for the kernels, and its weights packed for them.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels/pixel_embed.h"

namespace tnt_kernels::cpu {

// The channel blocks, in vectors: as few as fit the registers, of nearly equal size.
std::vector<int64_t> pixel_embed_blocks(const PixelEmbedKernels& kernels, int64_t dim);

// Fills in what follows from the sizes of the tensors and the options.
void pixel_embed_complete(PixelEmbedShape& shape, DType images);

// The classes of tokens of PixelEmbedForward and their packed weights.
class PixelEmbedClasses {
 public:
  explicit PixelEmbedClasses(const PixelEmbedShape& shape);

  // Floats that pack() writes, for `lanes` lanes in all blocks together.
  int64_t weight_floats(int64_t lanes) const;

  // Packs weight (C, Cin k k) into `packed` and returns the classes that point there and into this.
  std::vector<PixelEmbedClass> pack(const float* weight, const std::vector<int64_t>& blocks,
                                    int64_t vector_lanes, float* packed) const;

 private:
  struct Class {
    int64_t ky, ky_end, kx, kx_end;  // the taps that meet the patch
    std::vector<int32_t> row_offsets, token_offsets, tokens;

    // Tap pairs per row, and steps of the kernel over all rows.
    int64_t pairs() const { return (kx_end - kx) / 2; }
    bool odd() const { return (kx_end - kx) % 2 != 0; }
    int64_t steps() const {
      const int64_t rows = static_cast<int64_t>(row_offsets.size());
      return rows * pairs() + (odd() ? (rows + 1) / 2 : 0);
    }
  };
  // Two taps whose weights share a vector, in the kernel's order; -1 for none.
  struct TapPair {
    int64_t even, odd;
  };
  std::vector<TapPair> tap_pairs(const Class& c) const;

  PixelEmbedShape shape_;
  std::vector<Class> classes_;
};

}  // namespace tnt_kernels::cpu
