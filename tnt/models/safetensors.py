"""Reads .safetensors files: 8 bytes of length, a JSON header, raw little-endian values."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by name, each with its own memory.

    Raises: ValueError, naming the file, when it is cut short or malformed.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"load_checkpoint: {path} is cut short or no safetensors file")
        try:
            header = json.loads(file.read(length))
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        except (ValueError, RecursionError, AttributeError) as error:
            raise ValueError(
                f"load_checkpoint: the header of {path} cannot be read ({error}); get it again"
            ) from error
        values_at = 8 + length
        return {
            key: _read(file, path, key, entry, values_at, size) for key, entry in entries.items()
        }


def _read(file: Any, path: Path, key: str, entry: Any, values_at: int, size: int) -> Tensor:
    def refuse(problem: str) -> ValueError:
        return ValueError(f"load_checkpoint: {key} in {path} {problem}; get the file again")

    try:
        name, shape, (begin, end) = entry["dtype"], list(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise refuse("has no dtype, shape and data_offsets") from error
    if name not in _DTYPES:
        raise refuse(f"is of dtype {name}, not one of {', '.join(_DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise refuse("has a shape or offset that is no whole number")
    dtype = _DTYPES[name]
    if end - begin != math.prod(shape) * dtype.itemsize or values_at + end > size:
        raise refuse(f"does not fit: shape {shape} of {name} at bytes {begin} to {end}")
    if begin == end:
        return torch.empty(shape, dtype=dtype)
    file.seek(values_at + begin)
    return torch.frombuffer(bytearray(file.read(end - begin)), dtype=dtype).reshape(shape)
