"""Options and fixtures that every test shares."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op and model tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Triton's tests run where Triton does: on a GPU, or on the CPU under its interpreter."""
    from ops.helpers import INTERPRETED, accelerated

    running = accelerated(config.getoption("--device"))
    seen: dict = {}

    def runs(item: pytest.Item) -> bool:
        parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        backend = parameters.pop("backend", None)
        if backend == "triton" and INTERPRETED and not _interpreter_takes(item, parameters, seen):
            return False
        return backend in (None, *running)

    chosen = [item for item in items if runs(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def _interpreter_takes(item: pytest.Item, parameters: Mapping[str, Any], seen: dict) -> bool:
    """A share of the combinations that still has every value of every parameter.

    The interpreter takes a second for what a GPU does in microseconds. Of tests with several
    parameters every third combination runs, so that each case of an op has one of the dtypes, in
    turn; of the random sizes every fifth, which are all ops. `seen` numbers the values.
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
