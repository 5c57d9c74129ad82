"""The emulated kernels, compiled once per session, and the report on what ran."""

from __future__ import annotations

from types import ModuleType

import pytest
from emulation import backwards, calls, pixels
from emulation.build import EmulatorBuild, load


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """The emulator with every kernel body of csrc/cuda."""
    pytest.importorskip("pybind11")
    build = EmulatorBuild("kernels")
    path = build.add("all")
    build.run()
    return load(path)


@pytest.fixture(scope="session")
def pixel_kernels() -> ModuleType:
    """The emulator with every kernel body of the pixel ops."""
    pytest.importorskip("pybind11")
    build = pixels.PixelBuild("pixels")
    path = build.add_pixels("pixel_ops")
    build.run()
    return load(path)


@pytest.fixture(scope="session")
def backward_kernels() -> ModuleType:
    """The emulator with every backward body of the inner block."""
    pytest.importorskip("pybind11")
    build = backwards.BackwardBuild("backward")
    path = build.add_backward("all-backward")
    build.run()
    return load(path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many kernel bodies the emulator ran, and how many planted faults it caught."""
    executed = sum(len(module.executed) for module in (calls, pixels, backwards))
    if executed:
        known = len(calls.BODIES) + len(pixels.BODIES) + len(backwards.KERNELS)
        bodies = f"{executed} of {known} kernel bodies executed"
        faults = f"{len(calls.caught)} of {calls.planted} planted faults caught"
        terminalreporter.write_line(f"emulation: {bodies}; {faults}")
