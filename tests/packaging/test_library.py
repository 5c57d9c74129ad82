"""The library that is installed or built in place: what it needs, and what it must not contain."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

import tnt_kernels

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(tnt_kernels.__file__).parent
LIBRARY = PACKAGE / "_C.abi3.so"
SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6"}
# The C shims of the stable ABI; everything else that torch exports may change between releases.
STABLE_SYMBOL = re.compile(r"(aoti_torch|torch)_\w+$")


def output_of(*command: object) -> str:
    return subprocess.run(map(str, command), capture_output=True, text=True, check=True).stdout


def test_library_needs_only_what_a_cpu_only_torch_has() -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", output_of("readelf", "-d", LIBRARY)))
    needed = {name for name in needed if not name.startswith("ld-linux")}
    assert needed <= SYSTEM | {"libtorch_cpu.so"}


def test_library_has_no_search_path() -> None:
    assert not re.search("R(UN)?PATH", output_of("readelf", "-d", LIBRARY))


def test_undefined_symbols_are_the_stable_abi_or_versioned() -> None:
    lines = output_of("nm", "-D", "--undefined-only", LIBRARY).splitlines()
    symbols = [line.split()[-1] for line in lines if " w " not in line]
    # a symbol of the C or C++ library carries its version: memcpy@GLIBC_2.14
    unstable = [s for s in symbols if "@" not in s and not STABLE_SYMBOL.match(s)]
    assert not unstable
    assert not [s for s in symbols if s.startswith(("Py", "_Py"))]


def test_library_is_of_this_version() -> None:
    stamp = ctypes.CDLL(str(LIBRARY)).tnt_kernels_version
    stamp.restype = ctypes.c_char_p
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stamp().decode() == version[1]


def kernel_objects() -> list[Path]:
    return sorted(ROOT.glob("build/temp*/_C/csrc/cpu/isa/*.o"))


@pytest.mark.skipif(not kernel_objects(), reason="the library was not built in this checkout")
@pytest.mark.parametrize("path", kernel_objects(), ids=lambda path: path.stem)
def test_weak_symbols_are_of_the_instruction_set(path: Path) -> None:
    """The linker keeps one copy of a weak symbol for all files: of a shared inline function that
    could be the one for AVX-512, and crash on another machine. Templates are always weak, so
    kernels live in a namespace of their instruction set."""
    isa = path.name.split(".")[0].split("_")[0]
    weak = re.findall(r"^\S+ [WVu] (.*)$", output_of("nm", "-C", path), re.MULTILINE)
    assert not [symbol for symbol in weak if f"tnt_kernels::cpu::{isa}::" not in symbol]
