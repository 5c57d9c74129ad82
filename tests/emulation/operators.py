"""Compiles the operators of csrc/cuda, launches and all, for an emulated GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from emulation.build import BUILD, FLAGS, HERE, ROOT, import_file


def build() -> Path:
    """The library that implements `tnt_kernels_emulated::*` for CPU tensors."""
    setup_py = import_file("tnt_setup_py", ROOT / "setup.py")
    torch_dir = Path(torch.__file__).parent
    ninja = setup_py.NinjaFile(BUILD / "operators")
    flags = [*FLAGS, "-Icsrc", "-isystem", str(torch_dir / "include")]
    flags += [f"-DTORCH_TARGET_VERSION={setup_py.TORCH_TARGET_VERSION}", "-x", "c++"]
    sources = [*setup_py.cuda_sources(), f"{HERE}/emulator.cpp", f"{HERE}/device.cpp"]
    objects = [ninja.compile(source, "all", [*setup_py.cxx(), *flags]) for source in sources]
    library = ninja.build_dir / "emulated_operators.so"
    ninja.link(library, objects, [f"-L{torch_dir / 'lib'}", "-ltorch_cpu"])
    ninja.run()
    return library


def load() -> Callable:
    """Loads the library; returns what sets (multiprocessors, reversed) of the emulated GPU."""
    library = build()
    torch.ops.load_library(str(library))
    set_device = ctypes.CDLL(str(library)).set_emulated_device
    set_device.argtypes, set_device.restype = (ctypes.c_int, ctypes.c_bool), None
    return set_device
