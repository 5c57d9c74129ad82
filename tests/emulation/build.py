"""Compiles the emulator around the kernel bodies of csrc/cuda, or around a changed copy of them."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "emulation"
HERE = "tests/emulation"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
FLAGS += ["-Wno-unknown-pragmas", f"-I{HERE}"]  # the twin of cuda/warp.cuh is found first
NAMESPACES = {"BFloat16": "bf16", "Float16": "fp16", "Float32": "fp32", "TensorFloat32": "tf32"}


def import_file(name: str, path: Path) -> ModuleType:
    """The module at `path`, be it Python or compiled."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EmulatorBuild:
    """Collects modules to compile; `run` compiles what changed."""

    def __init__(
        self, folder: str, common: Sequence[str] = ("bindings.cpp", "emulator.cpp", "self_test.cpp")
    ):
        import pybind11

        setup_py = import_file("tnt_setup_py", ROOT / "setup.py")
        self.cxx = setup_py.cxx()
        self.ninja = setup_py.NinjaFile(BUILD / folder)
        self.objects: dict = {}
        include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
        flags = [*FLAGS, "-Icsrc", *include]
        self.common = [self.compile(source, "common", flags) for source in common]

    def compile(self, source: str, library: str, flags: Sequence[str]) -> Path:
        return self.ninja.compile(f"{HERE}/{source}", library, [*self.cxx, *flags])

    def add(
        self,
        name: str,
        csrc: str = "csrc",
        configs: str = "",
        dtypes: Sequence[str] = tuple(NAMESPACES),
    ) -> Path:
        """The module whose bodies come from `csrc`: all configurations unless some are named.

        Types that are not in `dtypes` have the bodies of the checkout.
        """
        objects = list(self.common)
        for dtype in NAMESPACES:
            changed = dtype in dtypes
            library = name if changed else "unchanged"
            objects.append(self._bodies(dtype, library, csrc if changed else "csrc", configs))
        return self.link(name, objects)

    def link(self, name: str, objects: Sequence[Path]) -> Path:
        """The module of these objects; `load` imports it once it is compiled."""
        output = self.ninja.build_dir / name
        output = output / ("emulated_kernels" + sysconfig.get_config_var("EXT_SUFFIX"))
        self.ninja.link(output, objects, [])
        return output

    def _bodies(self, dtype: str, library: str, csrc: str, configs: str) -> Path:
        namespace = NAMESPACES[dtype]
        key = f"{library}-{namespace}"
        if key not in self.objects:
            flags = [*FLAGS, f"-I{csrc}", f"-DTNT_DTYPE={dtype}", f"-DTNT_NAMESPACE={namespace}"]
            flags += [f"-DTNT_CONFIGS={configs}"] if configs else []
            self.objects[key] = self.compile("inner_block.cpp", key, flags)
        return self.objects[key]

    def run(self) -> None:
        self.ninja.run()


def load(path: Path) -> ModuleType:
    """Import a module that was compiled; pybind11 keeps one module per qualified name."""
    return import_file(f"{path.parent.name}.emulated_kernels", path)
