"""Faults to plant in the kernel bodies, each a change of one place in csrc/cuda."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emulation.build import BUILD, ROOT


class Fault(NamedTuple):
    """`old` in the file, which must be there exactly once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault("missing barrier", "inner_block/body.cuh", "  block_sync();\n", ""),
    Fault("wrong lane", "tile/layer_norm.cuh", "x += warp_shuffle_xor<1>(x)",
          "x += warp_shuffle_xor<4>(x)"),
    Fault("row maximum over half a row", "tile/layer_norm.cuh",
          "return max_f32(x, warp_shuffle_xor<2>(x));", "return x;"),
    Fault("divergent shuffle", "tile/layer_norm.cuh", "return x + warp_shuffle_xor<2>(x);",
          "return lane_id() < 16 ? x + warp_shuffle_xor<2>(x) : x;"),
    Fault("swapped halves of k", "tile/attention.cuh", "keys[j / 2].k[first + f].rows[j % 2]",
          "keys[j / 2].k[first + f].rows[1 - j % 2]"),
    Fault("values of the other group", "tile/attention.cuh", "v[f / 2][half].rows[f % 2]",
          "v[f / 2][half].rows[1 - f % 2]"),
    Fault("swapped operands of two tiles", "tile/linear.cuh",
          "multiply_add<Math>(acc, x[i], w[n]);",
          "multiply_add<Math>(acc, x[kTiles - 1 - i], w[n]);"),
    Fault("scale of the wrong row", "tile/attention.cuh", "acc[i] *= factor[i / 2];",
          "acc[i] *= factor[i % 2];"),
    Fault("tail overrun", "inner_block/body.cuh", "return 16 * tile < num_rows;", "return true;"),
    Fault("tail rows stored", "inner_block/body.cuh",
          "return 16 * tile + 8 * half + lane_id() / 4 < num_rows;", "return true;"),
    Fault("other sequences attended", "tile/attention.cuh",
          "if (!same) scores[half][i] = as_float(0xff800000u);", "static_cast<void>(same);"),
    Fault("values of other sequences not made finite", "tile/attention.cuh",
          "v[half] = Math::finite(v[half]);", "v[half] = v[half];"),
    Fault("stale fragment", "tile/fragment.cuh", "next_ += 32 * 4;", ""),
    Fault("weights of the first step for all", "inner_block/body.cuh",
          "WeightStream<Math> stream(weights, step * Config::kStepWords);",
          "WeightStream<Math> stream(weights, step * 0);"),
    Fault("wrong pad row", "inner_block/pack.cuh", "is_one(group, g()) ? 1.0f",
          "is_one(group, g() + 1) ? 1.0f"),
    Fault("softmax scale forgotten", "inner_block/pack.cuh", "kScale = Config::kSoftmaxScale;",
          "kScale = 1.0f;"),
    Fault("rows of k taken from q", "inner_block/pack.cuh", "row == kNone ? kNone : kDim + row",
          "row == kNone ? kNone : row"),
    Fault("norm's bias left out", "inner_block/pack.cuh",
          "for (int c = 0; c < num_channels; ++c)", "for (int c = 1; c < num_channels; ++c)"),
    Fault("channels in plain order", "tile/rows.cuh",
          "column / 2 * 2 * group.count + 2 * (tile - group.first) + column % 2",
          "8 * (tile - group.first) + column"),
    Fault("wide access at half its alignment", "tile/rows.cuh",
          "return (4 * group.first + lane_id() % 4 * group.count) * Dtype::kPairWords;",
          "return (4 * group.first + lane_id() % 4 * group.count) * Dtype::kPairWords + 1;"),
    Fault("second drop path with the first's factors", "inner_block/body.cuh",
          "rows.load_scale(params.drop_path_mlp, scale);",
          "rows.load_scale(params.drop_path_attn, scale);"),
    Fault("middle residual stored at the end", "inner_block/body.cuh",
          "if (params.mid != nullptr) rows.store(params.mid, x);", ""),
    Fault("range not checked", "inner_block/pack.cuh", "leaves = leaves || !check.fits(row);",
          "leaves = leaves || row < 0;"),
    Fault("range of the first rows only", "inner_block/pack.cuh", "row += block_threads()",
          "row += check.kRows"),
    Fault("last group of patches left out", "inner_block/body.cuh",
          "(params.num_patches + kPatches - 1) / kPatches", "params.num_patches / kPatches"),
)  # fmt: skip

# Small enough to compile in seconds, and together every branch of the bodies.
CONFIGS = (
    "ConfigList<TunedConfig<TNT_DTYPE,16,24,4>,TunedConfig<TNT_DTYPE,16,40,4>,"
    "TunedConfig<TNT_DTYPE,64,6,2>,TunedConfig<TNT_DTYPE,4,96,8>>"
)
SIZES = ((16, 24, 4), (16, 40, 4), (64, 6, 2), (4, 96, 8))


def plant(fault: Fault) -> Path:
    """A copy of the bodies with the fault; returns what replaces csrc/ on the include path."""
    folder = BUILD / "faults" / fault.name.replace(" ", "-").replace("'", "")
    source = ROOT / "csrc" / "cuda"
    for original in source.rglob("*.*"):
        copy = folder / "cuda" / original.relative_to(source)
        text = original.read_text()
        if original == source / fault.file:
            assert text.count(fault.old) == 1, f"{fault.name}: {fault.old!r} in {fault.file}"
            text = text.replace(fault.old, fault.new)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:  # an unchanged copy is not compiled again
            copy.write_text(text)
    (folder / "cuda" / "warp.cuh").unlink()  # the emulator has its own
    return folder
