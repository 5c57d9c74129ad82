"""Faults to plant in the kernel bodies of the pixel ops."""

from __future__ import annotations

from emulation.faults import Fault

FORWARD = "pixel_embed/forward_body.cuh"
BACKWARD = "pixel_embed/backward_body.cuh"
EMBED_FAULTS = (
    Fault("tables read before they are there", FORWARD, "  block_sync();\n", ""),
    Fault("patch read before it is there", FORWARD, "    warp_sync();\n    uint32_t* out",
          "    uint32_t* out"),
    Fault("border left as it was", FORWARD, "team_clear(tiles, plan.group_words(), team);", ""),
    Fault("operand registers in the wrong order", FORWARD, "rows[i % 2] + at.w[i / 2]",
          "rows[i / 2] + at.w[i % 2]"),
    Fault("last chunk left out", FORWARD, "plan.chunks % 2 == 1", "plan.chunks % 2 == 2"),
    Fault("rows that do not exist stored", FORWARD, "row + 8 < patches * plan.tokens",
          "row + 8 < 16 * plan.row_tiles"),
    Fault("patches that do not exist read", FORWARD, "first + (i < patches ? i : 0)", "first + i"),
    Fault("pixels beside the window counted", "pixel_embed/tiles.cuh",
          "lane_id() % 4 * 2 - plan.first_tap", "lane_id() % 4 * 2"),
    Fault("pixels beside the image read", "pixel_embed/tiles.cuh",
          "column < static_cast<uint32_t>(plan.width)",
          "column < static_cast<uint32_t>(plan.width + 8)"),
    Fault("position of another token", "pixel_embed/pack.cuh", "16 * tile + i / 2 * 8 + lane / 4",
          "16 * tile + i % 2 * 8 + lane / 4"),
    Fault("gradients added before they are there", BACKWARD,
          "    block_sync();\n    for (int tile = grad", "    for (int tile = grad"),
    Fault("patches replaced while they are read", BACKWARD,
          "    block_sync();\n  }\n  grad.combine", "  }\n  grad.combine"),
    Fault("sums of one token warp lost", BACKWARD, "from < kTokenWarps", "from < kTokenWarps - 1"),
    Fault("sums read before they are there", BACKWARD,
          "      block_sync();\n#pragma unroll\n      for (int i = 0; i < kSums; ++i) {\n"
          "        if (slice.token_warp != 0)",
          "#pragma unroll\n      for (int i = 0; i < kSums; ++i) {\n"
          "        if (slice.token_warp != 0)"),
    Fault("tokens of a pair swapped", BACKWARD, "rows[half][i] = tiles + places.w[i]",
          "rows[half][i] = tiles + places.w[1 - i]"),
    Fault("gradients of patches that do not exist", BACKWARD, "if (i < patches * pairs) pair",
          "pair"),
    Fault("slices of taps all the first", BACKWARD, "number / plan.passes * kTapWarps",
          "0 * kTapWarps"),
    Fault("one partial left out", "tile/sum_partials.cuh", "p < params.count",
          "p < params.count - 1"),
    Fault("window one token short", "pixel_embed/image_grad_body.cuh",
          "(end - plan.kernel) / plan.stride + 1", "(end - plan.kernel) / plan.stride + 2"),
)  # fmt: skip
