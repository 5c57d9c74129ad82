"""The emulated kernels, compiled once per session, and the report on what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from emulation import backwards, calls, operators, pixels
from emulation.backend import EmulatedBackend
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


@pytest.fixture(scope="session")
def set_device() -> Callable[[int, bool], None]:
    """Loads the operators of csrc/cuda; sets up the emulated GPU that they run on."""
    return operators.load()


@pytest.fixture
def backend(set_device: Callable[[int, bool], None]) -> Iterator[EmulatedBackend]:
    """The operators of csrc/cuda on an emulated GPU of two multiprocessors."""
    set_device(2, False)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    yield EmulatedBackend(set_device)
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many kernel bodies the emulator ran, and how many planted faults it caught."""
    executed = sum(len(module.executed) for module in (calls, pixels, backwards))
    if executed:
        known = len(calls.BODIES) + len(pixels.BODIES) + len(backwards.KERNELS)
        bodies = f"{executed} of {known} kernel bodies executed"
        faults = f"{len(calls.caught)} of {calls.planted} planted faults caught"
        terminalreporter.write_line(f"emulation: {bodies}; {faults}")
