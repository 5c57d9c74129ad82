"""Load trained weights: the authors' .pth.tar, timm's .pth, .safetensors."""

from __future__ import annotations

import argparse
import math
import os
import pickle
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .safetensors import read_safetensors

# The authors' names of parameters and layers, and timm's.
_FROM_AUTHORS = {
    "outer_pos": "patch_pos",
    "inner_pos": "pixel_pos",
    "patch_embed": "pixel_embed",
    "proj_norm1": "norm1_proj",
    "proj_norm2": "norm2_proj",
    "inner_norm1": "norm_in",
    "inner_attn": "attn_in",
    "inner_norm2": "norm_mlp_in",
    "inner_mlp": "mlp_in",
    "outer_norm1": "norm_out",
    "outer_attn": "attn_out",
    "outer_norm2": "norm_mlp",
    "outer_mlp": "mlp",
}
_UNUSED_BY_AUTHORS = "outer_tokens"
_WRAPPERS = ("state_dict", "model")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN_KEYS = 5


def load_checkpoint(
    model: nn.Module,
    path: Union[str, os.PathLike],
    *,
    drop_head: bool = False,
    use_ema: bool = True,
    source_grid: Optional[tuple[int, int]] = None,
) -> nn.Module:
    """Load trained weights into a TNT, whoever wrote the file.

    Takes a state dict, bare or wrapped ('state_dict', 'model', 'state_dict_ema', 'model_ema'), with
    the authors' names or timm's, with or without the prefixes of DataParallel and torch.compile.
    Patch positions of another image size are interpolated (bicubic, antialiased, the class
    position kept), as timm does. Pickles may hold tensors and plain values only. Nothing is
    changed when something does not fit.

    Args:
        model: a TNT of this package or of timm.
        path: .pth, .pth.tar, .bin, .pt or .safetensors.
        drop_head: keep the model's own head, for another number of classes. (A model without a
            head never loads one.)
        use_ema: prefer averaged weights where the file holds both.
        source_grid: rows and columns of patches of the file's positions, where they are not of a
            square.
    Returns: `model`.
    Raises: FileNotFoundError; ValueError naming the key or the file, and what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_checkpoint: no file {path}; check the path")
    found = fit_state_dict(_unwrap(read_plain(path), path, use_ema), model, source_grid)
    own = model.state_dict()
    has_head = any(key.startswith("head.") for key in own)
    if drop_head or not has_head:
        found = {key: value for key, value in found.items() if not key.startswith("head.")}
    expected = {k: v for k, v in own.items() if not (drop_head and k.startswith("head."))}
    _check_keys(expected, found, path)
    _check_shapes(expected, found, path)
    with torch.no_grad():
        for key, target in expected.items():
            target.copy_(found[key])
    return model


def fit_state_dict(
    found: dict[str, Tensor],
    model: nn.Module,
    source_grid: Optional[tuple[int, int]] = None,
) -> dict[str, Tensor]:
    """A state dict of any dialect under timm's names, its positions in the shapes of `model`.

    Raises: ValueError when positions cannot be interpolated (see `load_checkpoint`).
    """
    found = {canonical_key(key): value for key, value in found.items()}
    found.pop(_UNUSED_BY_AUTHORS, None)
    own = model.state_dict()
    if "patch_pos" in found and "patch_pos" in own:
        grid = tuple(model.pixel_embed.grid_size)
        found["patch_pos"] = _fit_patch_pos(found["patch_pos"], own["patch_pos"], grid, source_grid)
    if "pixel_pos" in found and "pixel_pos" in own:
        found["pixel_pos"] = _fit_pixel_pos(found["pixel_pos"], own["pixel_pos"])
    return found


def read_plain(path: Path) -> Any:
    """What a checkpoint file holds, tensors on the CPU; a pickle's code is never run.

    Raises: ValueError for a file that is cut short, malformed or holds more than plain values.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return read_safetensors(path)
    try:
        # training scripts keep their arguments beside the weights; a Namespace only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line), "")
        raise ValueError(
            f"load_checkpoint: {path} is no file of plain tensors and was not run. {reason} If you "
            f"trust its source, save torch.load(path, weights_only=False)['state_dict'] anew"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"load_checkpoint: {path} cannot be read ({first}); it may be cut short, get it again"
        ) from error


def _unwrap(content: Any, path: Path, use_ema: bool) -> dict[str, Tensor]:
    """The state dict inside what a file holds."""
    names = (*_EMA_WRAPPERS, *_WRAPPERS) if use_ema else (*_WRAPPERS, *_EMA_WRAPPERS)
    for _ in range(2):  # a wrapper may hold a wrapper
        if not isinstance(content, dict):
            break
        name = next((name for name in names if isinstance(content.get(name), dict)), None)
        content = content if name is None else content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"load_checkpoint: {path} holds {type(content).__name__}, not a state dict; save "
            f"model.state_dict(), bare or under one of {', '.join(names)}"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"load_checkpoint: {key!r} in {path} is {type(value).__name__}, not a tensor; save "
                f"model.state_dict(), bare or under one of {', '.join(names)}"
            )
    return content


def canonical_key(key: str) -> str:
    """timm's name of a parameter, without the prefixes of wrappers."""
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return ".".join(_FROM_AUTHORS.get(part, part) for part in key.split("."))


def _fit_patch_pos(
    found: Tensor, own: Tensor, grid: tuple[int, int], source_grid: Optional[tuple[int, int]]
) -> Tensor:
    """Patch positions (1, 1 + N', D) interpolated to (1, 1 + N, D)."""
    if found.dim() != 3 or found.shape[0] != 1 or found.shape[2] != own.shape[2]:
        return found  # of another model: the check of shapes will name it
    if source_grid is None:
        if found.shape == own.shape:
            return found
        side = math.isqrt(max(found.shape[1] - 1, 0))
        source_grid = (side, side)
    rows, columns = source_grid
    if rows * columns != found.shape[1] - 1 or rows * columns == 0:
        raise ValueError(
            f"load_checkpoint: patch_pos holds {found.shape[1] - 1} patch positions, not "
            f"{rows}x{columns}; pass source_grid=(rows, columns) of the file's images"
        )
    first, rest = found[:, :1], found[:, 1:].float()
    rest = rest.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    rest = F.interpolate(rest, size=grid, mode="bicubic", antialias=True)
    rest = rest.permute(0, 2, 3, 1).flatten(1, 2)  # (1, N, D)
    return torch.cat([first, rest.to(first.dtype)], dim=1)


def _fit_pixel_pos(found: Tensor, own: Tensor) -> Tensor:
    """Pixel positions of the authors, (1, S, C), as timm's (1, C, h, w)."""
    _, dim, height, width = own.shape
    if found.dim() != 3 or found.shape[1:] != (height * width, dim):
        return found
    return found.transpose(1, 2).reshape(1, dim, height, width)


def _check_keys(own: dict, found: dict, path: Path) -> None:
    missing = [key for key in own if key not in found]
    unexpected = [key for key in found if key not in own]
    if not missing and not unexpected:
        return
    parts = [
        f"{what} {_shorten(keys)}"
        for what, keys in (("lacks", missing), ("has beyond the model", unexpected))
        if keys
    ]
    raise ValueError(
        f"load_checkpoint: {path} {' and '.join(parts)}; {_remedy(set(missing), set(unexpected))}"
    )


def _shorten(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def _remedy(missing: set[str], unexpected: set[str]) -> str:
    """What to do about keys that do not match, from where they differ."""
    if any(".norm2_proj." in key and key.startswith("blocks.") for key in unexpected):
        return "the file is of the published dialect: build the model with legacy=False"
    if any(".norm2_proj." in key and key.startswith("blocks.") for key in missing):
        return "the file is of timm's legacy dialect: build tnt_s_legacy"
    if any(".se_layer." in key for key in missing | unexpected):
        return f"build the model with se={any('.se_layer.' in key for key in unexpected)}"
    if any(key.endswith((".qk.bias", ".v.bias")) for key in missing | unexpected):
        return f"build the model with qkv_bias={any('.qk.bias' in key for key in unexpected)}"
    if missing and all(key.startswith("head.") for key in missing):
        return "pass drop_head=True to keep the model's own head"
    for name in ("patch_pos", "pixel_pos"):
        if name in missing | unexpected:
            return f"build the model with use_{name}={name in unexpected}"
    return "load it into the model that it was saved from"


def _check_shapes(own: dict, found: dict, path: Path) -> None:
    for key, target in own.items():
        if found[key].shape == target.shape:
            continue
        if key.startswith("head."):
            remedy = "pass drop_head=True, or build the model with that num_classes"
        elif key == "pixel_embed.proj.weight":
            remedy = "build the model with that in_chans and inner_dim"
        elif key.endswith("norm1_proj.weight") and key.startswith("blocks."):
            remedy = (
                "the dialects differ: build tnt_s_legacy for a file of that dialect, else tnt_s"
            )
        else:
            remedy = "build the model with the sizes of the file"
        raise ValueError(
            f"load_checkpoint: {key} in {path} is {tuple(found[key].shape)}, the model's is "
            f"{tuple(target.shape)}; {remedy}"
        )
