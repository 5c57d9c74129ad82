"""Faults to plant in the kernel bodies of the pixel ops."""

from __future__ import annotations

from emulation.faults import Fault

FORWARD = "pixel_embed/forward_body.cuh"
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
)  # fmt: skip
