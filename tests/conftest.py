"""Options and fixtures that every test shares."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the op and model tests")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Device that the tests run on, from --device."""
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one seed."""
    torch.manual_seed(0)
