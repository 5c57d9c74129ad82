"""Chooses the command and turns its errors into one line."""

from __future__ import annotations

import importlib
import sys
from typing import Optional

from .errors import UserError

_MODULES = {
    "train": "train",
    "finetune": "finetune",
    "eval": "evaluate",
    "predict": "predict",
    "visualize": "visualize",
}


def main(arguments: Optional[list[str]] = None) -> int:
    """Run `python -m tnt ARGUMENTS` (those of the process by default); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        from .options import COMMANDS, parse

        if not arguments or arguments[0] not in COMMANDS:
            return _overview(COMMANDS, arguments)
        command = arguments[0]
        options = parse(command, arguments[1:])
        module = importlib.import_module(f".{_MODULES[command]}", __package__)
        module.run(options)
    except UserError as error:
        # one raised in a loader's process brings that process's traceback along
        message = str(error).rpartition("UserError: ")[2].strip()
        print(f"tnt: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tnt: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "tnt":
            raise
        print(
            f"tnt: error: {error.name} is not installed; pip install 'tnt-kernels[train]' brings "
            f"what the commands need (datasets, for hfds/..., is apart)",
            file=sys.stderr,
        )
        return 2
    except OSError as error:  # a full disk under a log, say; checkpoints say more
        print(f"tnt: error: {error}", file=sys.stderr)
        return 2
    return 0


def _overview(commands: dict[str, type], arguments: list[str]) -> int:
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    print("usage: python -m tnt COMMAND ...   (COMMAND --help lists its options)\n")
    for name, kind in commands.items():
        print(f"  {name:10} {' '.join(kind.__doc__.split())}")
    if arguments and not asked:
        print(f"\ntnt: error: {arguments[0]!r} is no command", file=sys.stderr)
    return 0 if asked else 2
