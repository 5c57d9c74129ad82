"""Files that are whole or not there: checkpoints of a run, weights for others to use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from tnt.models.checkpoint import read_plain

from .errors import UserError
from .models import METADATA_KEY, Description

STATE_FIELDS = ("epoch", "step", "model", "optimizer", "scheduler", "best", "options")


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file beside `path`, flush it to the disk, then let it take the name.

    Whenever the process or the machine stops, `path` is what it was or what it is to be.
    Raises: UserError when it cannot be written; what was there before is left as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        # torch.save hides the operating system's error behind one of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        partial.unlink(missing_ok=True)
        kept = "; the one before it is intact" if path.exists() else ""
        raise UserError(
            f"{path} could not be saved: {cause.strerror}{kept}. Make room, then go on with "
            f"--resume auto"
        ) from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (see `Trainer.state`). Raises: UserError, as `write_whole`."""
    write_whole(path, lambda file: torch.save(state, file))


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state, tensors on the CPU; a pickle's code is never run.

    Raises: UserError for a file that is not there, damaged, or no training state.
    """
    if not path.is_file():
        raise UserError(f"--resume {path}: no such file; auto looks for last.pt in --output")
    try:
        state = read_plain(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    missing = [name for name in STATE_FIELDS if not isinstance(state, dict) or name not in state]
    if missing:
        raise UserError(
            f"--resume {path} is no state of a run (it lacks {', '.join(missing)}); to start from "
            f"its weights pass --weights {path}"
        )
    return state


def export(path: Path, weights: dict[str, Tensor], description: Description) -> None:
    """Write weights as safetensors, with what is needed to build their model and name its classes.

    Raises: UserError, as `write_whole`.
    """
    metadata = {"format": "pt", METADATA_KEY: json.dumps(asdict(description))}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    content = safetensors.torch.save(tensors, metadata)
    write_whole(path, lambda file: file.write(content))
