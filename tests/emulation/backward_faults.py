"""Faults to plant in the backward bodies of the inner block."""

from __future__ import annotations

from collections.abc import Sequence

from emulation.faults import Fault

ATTENTION, MLP = "inner_block/attention_backward.cuh", "inner_block/mlp_backward.cuh"
ROWS, FINISH = "inner_block/backward_rows.cuh", "inner_block/backward_finish.cuh"
GRADIENT = "tile/gradient.cuh"
BACKWARD_FAULTS = (
    Fault("sums added before the weights are read", GRADIENT,
          "  const int warps = block_threads() / 32;\n  block_sync();\n",
          "  const int warps = block_threads() / 32;\n"),
    Fault("sums added out of turn", GRADIENT, "    }\n    block_sync();\n  }\n  return warp_id()",
          "    }\n  }\n  block_sync();\n  return warp_id()"),
    Fault("hidden gradient not transposed", MLP, "warp_transpose(dhidden[i % 2].rows[i / 2])",
          "dhidden[i % 2].rows[i / 2]"),
    Fault("first slice of the sums for all", MLP,
          "share.slice * Config::kSliceChunks + c, sums", "c, sums"),
    Fault("gradient of keys from untransposed scores", ATTENTION,
          "Math::mma(dk[j][h], ds_keys[0], ds_keys[1],",
          "Math::mma(dk[j][h], ds_tile[j][0], ds_tile[j][1],"),
    Fault("row sum of dP forgotten", ATTENTION, "* (value - sum);", "* value;"),
    Fault("NaN of other sequences in the scores", ATTENTION,
          "if (!same_sequence<Config::kTokens>(j / 4, j % 4)) y[0][j / 4][j % 4] = 0.0f;", ""),
    Fault("rows past the end stored", ROWS,
          "return 16 * tile + 8 * half + lane_id() / 4 < count;", "return true;"),
    Fault("last worker's sums left out", "tile/sum_partials.cuh", "p < params.count; p",
          "p + 1 < params.count; p"),
    Fault("bias of v left out of proj's gradient", FINISH,
          "store_float(y.bias + row, v.bias_at(row, dim));", "store_float(y.bias + row, 0.0f);"),
)  # fmt: skip

# Where a fault shows: one launch; slices of the sums; several sequences in a tile.
SIZES = ((16, 24, 4), (16, 40, 4), (4, 96, 8))
SIZE_OF_FAULT = {
    "first slice of the sums for all": SIZES[1],
    "NaN of other sequences in the scores": SIZES[2],
    "rows past the end stored": SIZES[2],
}


def configs(sizes: Sequence[tuple]) -> str:
    """The list of configurations to compile."""
    names = (f"AttentionBackward<TNT_DTYPE,{','.join(map(str, size))}>" for size in sizes)
    return f"ConfigList<{','.join(names)}>"
