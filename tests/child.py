"""Runs code in another Python, for what must be true of a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tnt_kernels

TESTS = Path(__file__).resolve().parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `code` with the same tnt_kernels and the same helpers; the caller judges the outcome.

    The working directory is tests/, since `python -c` puts it first on the path: from the root of
    a checkout it would import the checkout's package, even where another one is installed.
    """
    paths = [str(TESTS), str(Path(tnt_kernels.__file__).parents[1])]
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
