"""Options and fixtures that every test shares."""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op and model tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list) -> None:
    """Triton's tests run where Triton does: on a GPU, or on the CPU under its interpreter."""
    from ops.helpers import accelerated

    running = accelerated(config.getoption("--device"))
    elsewhere = [item for item in items if _backend(item) not in (None, *running)]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


def _backend(item: pytest.Item) -> object:
    return item.callspec.params.get("backend") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Device that the tests run on, from --device."""
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed."""
    torch.manual_seed(0)
