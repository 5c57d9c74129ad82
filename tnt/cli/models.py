"""Models by timm's names, with weights from files or from timm's hub, and their class names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import timm
import torch
import yaml
from safetensors import SafetensorError, safe_open
from timm.data import ImageNetInfo, resolve_data_config
from torch import nn

import tnt.timm_plugin  # noqa: F401 (registers our names)
from tnt.models.checkpoint import load_checkpoint, read_plain

from .errors import UserError
from .options import ModelOptions

METADATA_KEY = "tnt"
HUB_PREFIX = "hf-hub:"
# What timm would load beside the model; a file has no say in that.
_LOADING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}
_LOADING |= {"cache_dir"}


@dataclass
class Description:
    """What a weights file of this program says about its model; kept beside the weights."""

    model: str
    model_kwargs: dict[str, Any]
    num_classes: int
    img_size: Optional[int]
    in_chans: int
    class_names: Optional[list[str]]
    crop_pct: Optional[float] = None


def build(
    options: ModelOptions,
    weights: Optional[str],
    *,
    found: Optional[Description] = None,
    num_classes: Optional[int] = None,
    class_names: Optional[list[str]] = None,
    **model_kwargs: Any,
) -> tuple[nn.Module, Description]:
    """The model of the options with weights, on the CPU.

    Args:
        options: name, keyword arguments and sizes; those in a weights file of this program, where
            it has any, go before them.
        weights: a file, "hub", "hf-hub:OWNER/NAME", or None or "random" for initial ones.
        found: what to build, in place of the description in a file.
        num_classes: of the head, which keeps its initial weights where the file has another
            number; by default the file's.
        class_names: of that head.
        model_kwargs: further arguments that only training gives (drop_path_rate).
    Raises: UserError for unknown names, unreadable files, no network, parts that do not fit.
    """
    is_file = weights is not None and weights not in ("hub", "random")
    if is_file and not weights.startswith(HUB_PREFIX):
        path = _existing(weights)
        found = _describe(path)
    name = found.model if found else options.model
    if not timm.is_model(name):
        near = ", ".join(timm.list_models("tnt_*"))
        raise UserError(f"--model {name} is no model that timm knows; TNTs are {near}")
    kwargs = dict(found.model_kwargs) if found else {}
    kwargs.update({key: yaml.safe_load(value) for key, value in options.model_kwargs.items()})
    in_chans = found.in_chans if found else options.in_chans
    img_size = options.img_size or (found.img_size if found else None)
    sizes = {"in_chans": in_chans, **({"img_size": img_size} if img_size else {})}

    def create(**more: Any) -> nn.Module:
        try:
            return timm.create_model(name, **kwargs, **sizes, **model_kwargs, **more)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f"{name} cannot be built with {kwargs | sizes}: {error}") from error

    if weights in (None, "random"):
        model = create(num_classes=num_classes or 1000)
    elif weights == "hub" or weights.startswith(HUB_PREFIX):
        model = _from_hub(create, name, weights, num_classes)
    else:
        model = _from_file(create, path, found, num_classes)
    classes = num_classes or model.num_classes
    if class_names is None and found and found.num_classes == classes:
        class_names = found.class_names
    crop_pct = options.crop_pct or (found.crop_pct if found else None)
    return model, Description(name, kwargs, classes, img_size, in_chans, class_names, crop_pct)


def _existing(weights: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise UserError(
            f"--weights {weights}: no such file; give a file, hub for timm's published weights, or "
            f"{HUB_PREFIX}OWNER/NAME"
        )
    return path


def _describe(path: Path) -> Optional[Description]:
    """The description in a file, or None when another program wrote it."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(METADATA_KEY)
                fields = None if text is None else json.loads(text)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is no safetensors file ({error}); get it again") from error
    else:
        content = _read_pickle(path)
        fields = content.get("description") if isinstance(content, dict) else None
    if fields is None:
        return None
    try:
        found = Description(**fields)
        forbidden = _LOADING & set(found.model_kwargs)
    except TypeError as error:
        raise UserError(f"{path} has a description of another version: {error}") from error
    if forbidden:
        raise UserError(f"{path} would have timm load something by {', '.join(forbidden)}; refused")
    return found


def _read_pickle(path: Path) -> Any:
    try:
        return read_plain(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def _from_hub(create: Any, name: str, weights: str, num_classes: Optional[int]) -> nn.Module:
    more: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if weights != "hub":
        more["pretrained_cfg_overlay"] = {"hf_hub_id": weights.removeprefix(HUB_PREFIX)}
    try:
        return create(pretrained=True, **more)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds, with and without network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the published weights of {name} could not be had ({reason}). Without a network, "
            f"download them elsewhere and pass the file as --weights"
        ) from error


def _from_file(
    create: Any, path: Path, found: Optional[Description], num_classes: Optional[int]
) -> nn.Module:
    in_file = found.num_classes if found else _head_rows(path)
    wanted = num_classes or in_file
    model = create(num_classes=wanted) if wanted else create()
    drop_head = in_file is not None and wanted != in_file
    try:
        if hasattr(model, "pixel_embed"):
            return load_checkpoint(model, path, drop_head=drop_head)
        if drop_head:
            raise UserError(
                f"{path} has {in_file} classes, {wanted} are wanted; only a TNT's head is replaced"
            )
        timm.models.load_checkpoint(model, str(path))
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    return model


def _head_rows(path: Path) -> Optional[int]:
    """Classes of a file without description: the rows of its head, where it is called so."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            if "head.weight" not in file.keys():  # noqa: SIM118 (a file, not a dict)
                return None
            return file.get_slice("head.weight").get_shape()[0]
    content = _read_pickle(path)
    for wrapper in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    head = content.get("head.weight") if isinstance(content, dict) else None
    return head.shape[0] if isinstance(head, torch.Tensor) and head.dim() == 2 else None


def class_name(description: Description, index: int) -> str:
    """Name of a class: the file's, ImageNet's for 1000 classes, else its number."""
    if description.class_names is not None:
        return description.class_names[index]
    if description.num_classes == 1000:
        return ImageNetInfo().index_to_description(index)
    return f"class {index}"


def data_config(model: nn.Module, description: Description) -> dict[str, Any]:
    """timm's input_size, interpolation, mean, std and crop_pct of the images a model takes."""
    size = description.img_size
    given = {"in_chans": description.in_chans, **({"img_size": size} if size else {})}
    if description.crop_pct:
        given["crop_pct"] = description.crop_pct
    config = resolve_data_config(given, model=model)
    for key in ("mean", "std"):
        if len(config[key]) != description.in_chans:
            config[key] = (sum(config[key]) / len(config[key]),) * description.in_chans
    return config


def choose_device(name: str) -> torch.device:
    """The device of --device. Raises: UserError when there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def autocast(device: torch.device, amp: Optional[str]) -> torch.autocast:
    """The context of --amp."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
