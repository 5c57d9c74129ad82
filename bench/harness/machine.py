"""The machine a figure belongs to, and how its heap is held still while figures are taken."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's mallopt parameters


def pin_heap() -> bool:
    """Keep freed memory in the process, for all contestants alike; True where glibc obeys.

    Without this, glibc may return every large temporary to the kernel after each eager operator
    and fault it back in: a cost of the allocator that would flatter fused kernels.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (AttributeError, OSError):
        return False


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        flags = set(names.get("flags", "").split())
        known = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
        isa = "+".join(name for name in known if name in flags)
        return f"{names.get('model name', platform.processor())} ({isa or 'baseline'})"
    except OSError:
        return platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _clock(device: str) -> str:
    """Clock at this moment, and the highest, in MHz."""
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.max.sm", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return done.stdout.splitlines()[torch.cuda.current_device()].strip()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        return f"{max(clocks):.0f} MHz"
    except (OSError, ValueError):
        return "unknown"


def describe(device: str, heap_pinned: bool) -> dict:
    """Everything a reader needs to place the figures; values are strings, numbers or bools."""
    found = {
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "clock": _clock(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "triton": _version("triton"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "heap_pinned": heap_pinned,
    }
    if device == "cuda":
        found["cuda"] = torch.version.cuda
    return found
