"""Faults to plant in the backward bodies of the inner block."""

from __future__ import annotations

from collections.abc import Sequence

from emulation.faults import Fault

ATTENTION, MLP = "inner_block/attention_backward.cuh", "inner_block/mlp_backward.cuh"
PLAIN, MLP_PASS = "inner_block/attention_backward_plain.cuh", "inner_block/mlp_backward_pass.cuh"
STAGED = "inner_block/mlp_backward_staged.cuh"
ROWS, FINISH = "inner_block/backward_rows.cuh", "inner_block/backward_finish.cuh"
BANDS, GRADIENT = "inner_block/band_sums.cuh", "tile/gradient.cuh"
BACKWARD_FAULTS = (
    Fault("sums added before the weights are read", GRADIENT,
          "  const int warps = block_threads() / 32;\n  block_sync();\n",
          "  const int warps = block_threads() / 32;\n"),
    Fault("sums added out of turn", GRADIENT, "    }\n    block_sync();\n  }\n  return warp_id()",
          "    }\n  }\n  block_sync();\n  return warp_id()"),
    Fault("hidden gradient not transposed", MLP, "transpose_pair(y.gradient, rows);",
          "rows[0] = y.gradient[0], rows[1] = y.gradient[1];"),
    Fault("first slice of the sums for all", MLP_PASS, "first = share.slice, last",
          "first = 0, last"),
    Fault("gradient of keys from untransposed scores", ATTENTION, "mix(ds_keys, in.q[f])",
          "mix(ds_tile, in.q[f])"),
    Fault("row sum of dP forgotten", ATTENTION, "* (value - sum);", "* value;"),
    Fault("keys of the neighbouring sequence", PLAIN,
          "const int row = i % kRows, sequence = row / kTokens * kTokens;",
          "const int row = i % kRows, sequence = (row / kTokens ^ 1) * kTokens;"),
    Fault("stage begun before the last has ended", "tile/block.cuh", "use(i);\n  block_sync();",
          "use(i);"),
    Fault("rows past the end stored", ROWS, "return 8 * half + lane_id() / 4 < count;",
          "return true;"),
    Fault("last worker's sums left out", "tile/sum_partials.cuh", "p < params.count; p",
          "p + 1 < params.count; p"),
    Fault("bias of v left out of proj's gradient", FINISH, "bias + weight_at(w.v_bias, row)",
          "bias"),
    Fault("norm's gradient from one lane", FINISH, "warp_sum(norm_grad(i % dim, i < dim))",
          "norm_grad(i % dim, i < dim)"),
    Fault("bands added before they are there", STAGED, "block_sync();\n      bands.add(",
          "bands.add("),
    Fault("bands overwritten while they are read", STAGED, "      block_sync();\n    }\n  }\n",
          "    }\n  }\n"),
    Fault("bands of tiles that are not there", STAGED,
          "share.left() < Config::kWarps ? share.left() : Config::kWarps", "Config::kWarps"),
    Fault("tokens of the other kind", BANDS,
          "kind + 1 == Config::kKinds ? Staged::kColumnWords : 0", "0"),
    Fault("row sums of the wrong kind", BANDS, "if (kind == 0) Math::mma",
          "if (kind == 1) Math::mma"),
)  # fmt: skip

# Where a fault shows: sums in a warp; in a block; several sequences in a tile.
SIZES = ((16, 24, 4), (16, 40, 4), (4, 96, 8))
_IN_A_BLOCK = (STAGED, BANDS)
_SEVERAL = (
    "first slice of the sums for all",
    "rows past the end stored",
    "stage begun before the last has ended",
)


def size_of(fault: Fault) -> tuple:
    """The sizes at which a fault shows."""
    if fault.file == PLAIN or fault.name in _SEVERAL:
        return SIZES[2]
    return SIZES[1] if fault.file in _IN_A_BLOCK else SIZES[0]


def configs(sizes: Sequence[tuple]) -> str:
    """The list of configurations to compile."""
    names = (f"AttentionBackward<TNT_DTYPE,{','.join(map(str, size))}>" for size in sizes)
    return f"ConfigList<{','.join(names)}>"
