"""Builds a pybind11 module around kernel headers, for tests of what is not a torch operator.

`load("simd_math")` compiles tests/cpp/simd_math.cpp once, and simd_math_isa.cpp once per
instruction set with the flags that setup.py gives to kernels, and imports the result. Ninja does
it, in build/tests, so that only what changed is compiled again.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def import_file(name: str, path: Path) -> ModuleType:
    """The module at `path`, be it Python or compiled."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(name: str, with_sources: Sequence[str] = ()) -> ModuleType:
    """Build and import the harness `name`, linked with further sources of csrc/."""
    import pybind11

    setup_py = import_file("tnt_setup_py", ROOT / "setup.py")
    ninja = setup_py.NinjaFile(ROOT / "build" / "tests")
    base = [*setup_py.cxx(), *setup_py.CXX_FLAGS, "-Icsrc"]
    # amx is no vector type of its own: its kernels use that of avx512
    isas = [isa for isa in setup_py.supported_isas() if isa != "amx"]
    objects = [ninja.compile(source, name, base) for source in with_sources]
    for isa in isas:
        flags = [*setup_py.KERNEL_FLAGS, *setup_py.ISA_FLAGS[isa]]
        source = f"tests/cpp/{name}_isa.cpp"
        objects.append(ninja.compile(source, f"{name}-{isa}", [*base, *flags]))
    include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    have = [f"-DTNT_HAVE_{isa.upper()}" for isa in isas]
    objects.append(ninja.compile(f"tests/cpp/{name}.cpp", name, [*base, *include, *have]))
    output = ninja.build_dir / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    ninja.link(output, objects, [])
    ninja.run()
    return import_file(name, output)
