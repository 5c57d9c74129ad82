"""Options and fixtures that every test shares."""

from __future__ import annotations

import os

# Threads that spin while they wait take the cores from whatever runs beside the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Mapping
from typing import Any, Optional

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()
if os.environ.get("TNT_EMULATED_GPU") == "1":
    from emulation import backend

    backend.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device of the op tests; a GPU gets those only"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """What runs here: Triton on a GPU or under its interpreter, an emulated GPU if it is there.

    What takes seconds instead of microseconds there runs in part.
    """
    from ops.helpers import ON_CPUS_ONLY, accelerated, is_slow

    device = config.getoption("--device")
    running = accelerated(device)
    seen: dict = {}

    def runs(item: pytest.Item) -> bool:
        parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        backend = parameters.pop("backend", None)
        if backend not in (None, "reference", *running):
            return False
        if device != "cpu" and "device" not in item.fixturenames:
            return False
        is_on_gpu = device != "cpu" or backend in ("triton", "emulated")
        if is_on_gpu and _op_of(parameters) in ON_CPUS_ONLY:
            return False
        return not is_slow(backend) or _slow_backend_takes(item, parameters, seen)

    chosen = [item for item in items if runs(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _op_of(parameters: Mapping[str, Any]) -> Optional[str]:
    """Name of the op that a test is about, if it is about one."""
    if "spec" in parameters:
        return parameters["spec"].name
    pair = parameters.get("pair") or parameters.get("fuzzed")
    return pair[0].name if pair else None


def _slow_backend_takes(item: pytest.Item, parameters: Mapping[str, Any], seen: dict) -> bool:
    """A share of the combinations that still has every value of every parameter.

    Of tests with several parameters every third combination runs, so that each case of an op has
    one of the dtypes, in turn; of the random sizes every fifth, which are all ops. `seen` numbers
    the values.
    """
    numbers = []
    for name, value in parameters.items():
        values = seen.setdefault((item.function, name), {})
        numbers.append(values.setdefault(id(value), len(values)))
    if len(numbers) > 1:
        return sum(numbers) % 3 == 0
    return "fuzzed" not in parameters or numbers[0] % 5 == 0


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Device that the tests run on, from --device."""
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed."""
    torch.manual_seed(0)
