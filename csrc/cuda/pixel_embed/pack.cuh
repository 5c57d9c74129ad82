// Packs what every warp of pixel_embed reads: the table of units, the places of rows and chunks,
// the weights as the right operand's fragments, and bias + pixel position as accumulators start.
// One thread packs one item.
#pragma once

#include "cuda/pixel_embed/tiles.cuh"
#include "cuda/tile/weights.cuh"

namespace tnt_kernels::cuda {

// Channel in a column of the 8-channel groups of a pass.
template <class Dtype, int kGroups>
TNT_DEVICE int pass_channel(int pass, int group, int column) {
  return pass * 8 * kGroups + RowLayout<Dtype, 8 * kGroups>::channel(group, column);
}

// The token in row `row` of a group: rows beyond the last take the first one's place.
TNT_DEVICE int token_of_row(const PixelEmbedPlan& plan, int row) {
  return row < plan.group_patches * plan.tokens ? row : 0;
}

template <class Dtype, int kGroups>
struct PixelEmbedPacker {
  using Own = cuda::Own<Dtype>;
  static constexpr int kUnitWords = Own::Math::kUnitWords;

  const PixelEmbedPack& params;

  // Where an element of a tile is, in bytes.
  static TNT_DEVICE uint32_t place(int element) {
    return static_cast<uint32_t>(element * 2 * Dtype::kPairWords);
  }

  TNT_DEVICE void pack_unit(int unit) const {
    const PixelEmbedPlan& p = params.plan;
    const int column = p.unit_left + unit % p.unit_cols * p.unit_pixels;
    const int row = p.unit_top + unit / p.unit_cols % p.unit_rows;
    const int channel = unit / p.unit_cols / p.unit_rows;
    const int to = (channel * p.tile_h + row + p.top) * p.tile_w + column + p.lead;
    const int from = (channel * p.height + row) * p.width + column;
    const uint32_t quad = static_cast<uint32_t>(from / kUnitPixels);
    uint32_t* entry = params.packed + p.entry_words() * unit;
    store_words(entry, Words<2>{{place(to), quad}});
    if (p.bytes) {
      // (pixel / 255 - mean) / std as one multiply-add of numbers that are rounded once
      const double mean = params.mean[channel], std = params.std[channel];
      const float scale = static_cast<float>(1.0 / (255.0 * std));
      const float shift = static_cast<float>(-mean / std);
      store_words(entry + 2, Words<2>{{as_word(scale), as_word(shift)}});
    }
    const uint32_t packed_place =
        static_cast<uint32_t>(row) << 16 | (static_cast<uint32_t>(column) & 0xffffu);
    store_words(params.packed + p.first_place + unit, Words<1>{{packed_place}});
  }

  TNT_DEVICE void pack_row(int row) const {
    const PixelEmbedPlan& p = params.plan;
    const int token = token_of_row(p, row), in_patch = token % p.tokens;
    const int element = in_patch / p.cols * p.stride * p.tile_w + in_patch % p.cols * p.stride;
    params.packed[p.first_row + row] =
        static_cast<uint32_t>(token / p.tokens * p.tile_words * 4) + place(element);
  }

  // The last of an odd number stands twice.
  TNT_DEVICE void pack_chunk(int chunk) const {
    const PixelEmbedPlan& p = params.plan;
    const int real = chunk < p.chunks ? chunk : p.chunks - 1;
    const int element = (real / p.kernel * p.tile_h + real % p.kernel) * p.tile_w;
    params.packed[p.first_chunk + chunk] = place(element);
  }

  TNT_DEVICE float tap(int channel, int chunk, int column) const {
    const PixelEmbedPlan& p = params.plan;
    const int kx = column - p.first_tap;
    if (channel >= p.dim || chunk >= p.chunks || kx < 0 || kx >= p.kernel) return 0.0f;
    return weight_at(params.weight, channel, chunk * p.kernel + kx);
  }

  // [pass][pair of chunks][group][lane]: two units
  TNT_DEVICE void pack_weight(int item) const {
    const PixelEmbedPlan& p = params.plan;
    const int lane = item % 32, group = item / 32 % kGroups;
    const int pair = item / 32 / kGroups % p.pairs(), pass = item / 32 / kGroups / p.pairs();
    const int channel = pass_channel<Dtype, kGroups>(pass, group, lane / 4);
    const int column = lane % 4 * 2;
    uint32_t* target = params.packed + p.first_weight + item * 2 * kUnitWords;
    for (int i = 0; i < 2; ++i) {
      const typename Own::Math::Unit unit = Own::Math::unit(tap(channel, 2 * pair + i, column),
                                                            tap(channel, 2 * pair + i, column + 1));
      store_words(target + i * kUnitWords, unit);
    }
  }

  // [pass][row tile][group][lane]: an accumulator
  TNT_DEVICE void pack_start(int item) const {
    const PixelEmbedPlan& p = params.plan;
    const int lane = item % 32, group = item / 32 % kGroups;
    const int tile = item / 32 / kGroups % p.row_tiles, pass = item / 32 / kGroups / p.row_tiles;
    Words<4> start = {};
    for (int i = 0; i < 4; ++i) {
      const int token = token_of_row(p, 16 * tile + i / 2 * 8 + lane / 4) % p.tokens;
      const int channel = pass_channel<Dtype, kGroups>(pass, group, lane % 4 * 2 + i % 2);
      if (channel >= p.dim) continue;
      float sum = params.bias.data == nullptr ? 0.0f : weight_at(params.bias, channel);
      if (params.pixel_pos.data != nullptr) sum += weight_at(params.pixel_pos, channel, token);
      start.w[i] = as_word(sum);
    }
    store_words(params.packed + p.first_start + 4 * item, start);
  }
};

template <class Dtype, int kGroups>
TNT_DEVICE void pixel_embed_pack_body(const PixelEmbedPack& params) {
  const PixelEmbedPlan& p = params.plan;
  const PixelEmbedPacker<Dtype, kGroups> packer = {params};
  const int rows = 16 * p.row_tiles, chunks = 2 * p.pairs();
  const int weights = p.passes * p.pairs() * kGroups * 32;
  const int starts = p.passes * p.row_tiles * kGroups * 32;
  const int items = p.units + rows + chunks + weights + starts;
  for (int item = block_id() * block_threads() + thread_id(); item < items;
       item += num_blocks() * block_threads()) {
    int i = item;
    if (i < p.units) {
      packer.pack_unit(i);
    } else if ((i -= p.units) < rows) {
      packer.pack_row(i);
    } else if ((i -= rows) < chunks) {
      packer.pack_chunk(i);
    } else if ((i -= chunks) < weights) {
      packer.pack_weight(i);
    } else {
      packer.pack_start(i - weights);
    }
  }
}

}  // namespace tnt_kernels::cuda
