"""Compiles Triton kernels for GPUs that are not here, and reads what the assembler made of them.

The host functions of the backend run on CPU tensors while `JITFunction.run` only notes what it is
given, so that exactly the launches that users get are compiled: types, constants, alignment, warps.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from tnt_kernels.backends.triton import launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = ("sm80", "sm90", "sm100", "sm120", "hip")


class Launch(NamedTuple):
    """One kernel as it would be launched."""

    kernel: JITFunction
    signature: dict
    constants: dict
    attributes: dict
    options: dict

    @property
    def name(self) -> str:
        """Name of the kernel."""
        return self.kernel.fn.__name__


class Report(NamedTuple):
    """Resources of one compiled kernel; sizes in bytes, registers per thread."""

    registers: int
    stack: int
    shared: int
    instructions: int
    wgmma: int


def _note(kernel: JITFunction, args: tuple, kwargs: dict) -> Launch:
    options = {key: kwargs.pop(key) for key in ("num_warps", "num_stages")}
    values = dict(zip(kernel.arg_names, args)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for parameter in kernel.params:
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        signature[parameter.name] = mangle_type(value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if type(number) is int and number % 16 == 0:
            attributes[(parameter.num,)] = [["tt.divisibility", 16]]
    return Launch(kernel, signature, constants, attributes, options)


@contextmanager
def noted_launches(architecture: str) -> Iterator[list]:
    """Launches inside are noted in the list instead of run, tiled as on `architecture`."""
    launches: list = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append(_note(self, args, kwargs))

    saved = JITFunction.run, launch.architecture_of
    JITFunction.run, launch.architecture_of = run, lambda device: architecture
    try:
        yield launches
    finally:
        JITFunction.run, launch.architecture_of = saved


def _target(architecture: str) -> GPUTarget:
    if architecture == "hip":
        return GPUTarget("hip", "gfx942", 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm")), 32)


def _tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_launch(noted: Launch, architecture: str) -> Report:
    """Compile for `architecture` and disassemble."""
    source = ASTSource(noted.kernel, noted.signature, noted.constants, noted.attributes)
    compiled = triton.compile(source, target=_target(architecture), options=noted.options)
    shared = compiled.metadata.shared
    if architecture == "hip":
        return _read_amdgcn(compiled.asm["amdgcn"], shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        assembly = _tool("nvdisasm", "-c", file.name)
    numbers = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    wgmma = compiled.asm["ptx"].count("wgmma.mma_async")
    return Report(int(numbers["REG"]), int(numbers["STACK"]), shared, assembly.count(";\n"), wgmma)


def _read_amdgcn(assembly: str, shared: int) -> Report:
    def number(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly).group(1))

    instructions = len(re.findall(r"^\t[a-z]_?[a-z0-9_]+ ", assembly, re.M))
    registers, stack = number("vgpr_count"), number("private_segment_fixed_size")
    return Report(registers, stack, shared, instructions, 0)
