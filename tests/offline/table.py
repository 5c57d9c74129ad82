"""The kernels that users of the published models launch, compiled for each architecture.

    PYTHONPATH=.:tests python tests/offline/table.py            print registers, stack, shared ...
    PYTHONPATH=.:tests python tests/offline/table.py --write    and make them the baseline

Needs no GPU. TRITON_INTERPRET must not be set: it decides what `@triton.jit` makes of a function.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import triton
from offline.compiler import ARCHITECTURES, Report, compile_launch, noted_launches

from tnt_kernels.backends.triton import inner, pixel_embed, pixel_to_patch
from tnt_kernels.reference import SPECS

BASELINE = Path(__file__).parent / "baseline.json"
_HOSTS = {"inner_block": inner, "pixel_embed": pixel_embed, "pixel_to_patch": pixel_to_patch}
_MAIN = ("sm80", "sm90")


def _inner(tokens: int, dim: int, heads: int) -> dict:
    return {"P": 392, "S": tokens, "C": dim, "heads": heads, "drop_path": 0.1}


def _stem(dim: int) -> dict:
    return {"B": 2, "Cin": 3, "H": 224, "W": 224, "C": dim, "patch": 16, "stride": 4}


def _outward(dim: int, outer_dim: int) -> dict:
    shape = {"B": 2, "N": 196, "S": 16, "C": dim, "D": outer_dim}
    return {**shape, "dialect": "published"}


# Name, operator, case, dtype, architectures: the inner block of both models everywhere, the rest on
# the two architectures of data centres.
SHIPPED = (
    ("TNT-S", "inner_block", _inner(16, 24, 4), torch.bfloat16, ARCHITECTURES),
    ("TNT-B", "inner_block", _inner(16, 40, 4), torch.bfloat16, ARCHITECTURES),
    ("stride 2", "inner_block", _inner(64, 6, 2), torch.bfloat16, _MAIN),
    ("stride 8", "inner_block", _inner(4, 96, 4), torch.bfloat16, _MAIN),
    ("TNT-S", "inner_block", _inner(16, 24, 4), torch.float16, _MAIN),
    ("TNT-S", "inner_block", _inner(16, 24, 4), torch.float32, _MAIN),
    ("TNT-S", "pixel_embed", _stem(24), torch.bfloat16, _MAIN),
    ("TNT-B", "pixel_embed", _stem(40), torch.bfloat16, _MAIN),
    ("TNT-S of uint8", "pixel_embed", {**_stem(24), "uint8": True}, torch.bfloat16, _MAIN),
    ("TNT-S", "pixel_to_patch", _outward(24, 384), torch.bfloat16, _MAIN),
    ("TNT-B", "pixel_to_patch", _outward(40, 640), torch.bfloat16, _MAIN),
)


def _launches(op: str, case: Mapping[str, Any], dtype: torch.dtype, architecture: str) -> list:
    """Every distinct kernel of forward and backward."""
    spec = SPECS[op]
    args = spec.make_args(case, dtype, "cpu")
    forward, backward = (getattr(_HOSTS[op], name) for name in (op, f"{op}_backward"))
    with noted_launches(architecture) as launches:
        out = forward(*args.values(), *((True,) if spec.flag else ()))
        out, second = out if spec.flag else (out, None)
        need_dx = args[spec.activation].is_floating_point()
        backward(out, *spec.backward_values(args, second), need_dx, True)
    distinct: dict = {}
    for noted in launches:
        distinct.setdefault(noted.name, noted)
    return list(distinct.values())


def measure(architecture: str) -> Iterator[tuple]:
    """(name, report) of every shipped kernel on one architecture."""
    for model, op, case, dtype, architectures in SHIPPED:
        if architecture not in architectures:
            continue
        for noted in _launches(op, case, dtype, architecture):
            kind = str(dtype).removeprefix("torch.")
            name = f"{architecture} {model} {kind} {noted.name}"
            yield name, compile_launch(noted, architecture)


def main(arguments: list) -> None:
    """Print the table; with --write store it."""
    print(f"{'':64}" + "".join(f"{field:>13}" for field in Report._fields))
    rows = {}
    for architecture in ARCHITECTURES:
        for name, report in measure(architecture):
            rows[name] = report._asdict()
            print(f"{name:64}" + "".join(f"{value:13}" for value in report), flush=True)
    if "--write" in arguments:
        text = json.dumps({"triton": triton.__version__, "kernels": rows}, indent=0)
        BASELINE.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
