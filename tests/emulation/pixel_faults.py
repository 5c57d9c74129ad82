"""Faults to plant in the kernel bodies of the pixel ops."""

from __future__ import annotations

from emulation.faults import Fault

FORWARD = "pixel_embed/forward_body.cuh"
BACKWARD = "pixel_embed/backward_body.cuh"
TILES, PACK = "pixel_embed/tiles.cuh", "pixel_embed/pack.cuh"
EMBED_FAULTS = (
    Fault("patch read before it is there", FORWARD, "    warp_sync();\n    uint32_t* out",
          "    uint32_t* out"),
    Fault("border left as it was", FORWARD, "team_clear(tiles, plan.group_words(), team);", ""),
    Fault("operand registers in the wrong order", FORWARD, "behind(rows[i % 2], at.w[i / 2])",
          "behind(rows[i / 2], at.w[i % 2])"),
    Fault("last chunk left out", FORWARD, "plan.chunks % 2 == 1", "plan.chunks % 2 == 2"),
    Fault("rows that do not exist stored", FORWARD, "row + 8 < patches * plan.tokens",
          "row + 8 < 16 * plan.row_tiles"),
    Fault("patches that do not exist read", FORWARD, "first + (i < patches ? i : 0)", "first + i"),
    Fault("pixels beside the window counted", TILES,
          "lane_id() % 4 * 2 - plan.first_tap", "lane_id() % 4 * 2"),
    Fault("pixels beside the image read", TILES, "column < plan.width",
          "column < plan.width + 8"),
    Fault("units wider than what is left of a row", "pixel_embed/plan.h",
          "columns % wide == 0", "columns % 4 == 0"),
    Fault("units wider than a patch is aligned", "pixel_embed/plan.h",
          "p.patch_w % wide == 0 && ", ""),
    Fault("gradients added before they are there", BACKWARD,
          "    block_sync();\n#pragma unroll 1\n", ""),
    Fault("patches replaced while they are read", BACKWARD,
          "    block_sync();\n  }\n  grad.combine", "  }\n  grad.combine"),
    Fault("operand not transposed", BACKWARD, "warp_transpose_b16(unit.w[0])", "unit.w[0]"),
    Fault("slices of taps all the first", BACKWARD, "number / plan.passes * kTapWarps",
          "0 * kTapWarps"),
    Fault("one partial left out", "tile/sum_partials.cuh", "p < params.count",
          "p < params.count - 1"),
    Fault("window one token short", "pixel_embed/image_grad_body.cuh",
          "(end - plan.kernel) / plan.stride + 1", "(end - plan.kernel) / plan.stride + 2"),
)  # fmt: skip

# In the way of uint8 images only: floating ones do not notice.
UINT8_FAULTS = (
    Fault("padding normalised too", TILES, "if (!exists) entries[i].w[2] = entries[i].w[3] = 0;",
          ""),
    Fault("mean of the first channel for all", PACK, "params.mean[channel]", "params.mean[0]"),
    Fault("std of the next channel", PACK, "params.std[channel]",
          "params.std[(channel + 1) % p.in_chans]"),
    Fault("mean added", PACK, "static_cast<float>(-mean / std)",
          "static_cast<float>(mean / std)"),
    Fault("one byte of a word twice", TILES, "byte_f32<2>(word)", "byte_f32<1>(word)"),
    Fault("second word of a unit left out", TILES,
          "for (int i = 0; i < kWords; ++i) {\n      Words",
          "for (int i = 0; i < 1; ++i) {\n      Words"),
)  # fmt: skip

PATCH = "pixel_to_patch/forward_body.cuh"
PATCH_BACKWARD = "pixel_to_patch/backward_body.cuh"
PATCH_FAULTS = (
    Fault("rows multiplied before they are there", PATCH,
          "  block_sync();\n  PatchProduct<Config> product;", "  PatchProduct<Config> product;"),
    Fault("sums over operands that are read", PATCH,
          "  block_sync();\n  product.template store_rows<0>", "  product.template store_rows<0>"),
    Fault("rows finished before they are there", PATCH,
          "  block_sync();\n  warp_finish_rows<Config>(params, first, shared);",
          "  warp_finish_rows<Config>(params, first, shared);"),
    Fault("class tokens left out", PATCH, "patch % params.patches_per_image == 0",
          "patch % params.patches_per_image < 0"),
    Fault("rows beyond the last stored", PATCH,
          "if (first + i >= params.num_patches) continue;", ""),
    Fault("row of the token before", PATCH,
          "static_cast<uint32_t>(patch) / static_cast<uint32_t>(patches_per_image) + 1",
          "static_cast<uint32_t>(patch) / static_cast<uint32_t>(patches_per_image)"),
    Fault("rows beyond the last read", PATCH,
          "row < params.num_patches ? row : params.num_patches - 1", "row"),
    Fault("LN1's bias left out", PATCH,
          "bias = fma_f32(weight, weight_at(params.norm1_bias, column)",
          "bias = fma_f32(0 * weight, weight_at(params.norm1_bias, column)"),
    Fault("part of a token's lanes summed", "pixel_to_patch/lane_row.cuh",
          "if (lanes > 4) x +=", "if (lanes > 8) x +="),
    Fault("sums of warps added at once", PATCH_BACKWARD,
          "    block_sync();\n    if (warp_id() != warp)", "    if (warp_id() != warp)"),
    Fault("gradients of the class tokens taken", PATCH_BACKWARD,
          "params.patches_per_image > 0 ? token_row(row, params.patches_per_image) : row", "row"),
)  # fmt: skip
