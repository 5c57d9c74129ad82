"""build_backend.py: lends the installed torch to the build, and asks for one only where none is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cpp.build import ROOT, import_file


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return import_file("tnt_build_backend", ROOT / "build_backend.py")


@pytest.fixture
def environment_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes site-packages hold only a torch of the given version, or none."""

    def make(version: str | None) -> str:
        if version:
            (tmp_path / f"torch-{version}.dist-info").mkdir()
            metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
            (tmp_path / f"torch-{version}.dist-info" / "METADATA").write_text(metadata)
        monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path)])
        monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "user"))
        return str(tmp_path)

    return make


@pytest.mark.parametrize("version", ["2.10.0", "2.14.1+cu130"])
def test_installed_torch_is_lent(
    backend: ModuleType, environment_with: Callable, version: str
) -> None:
    folder = environment_with(version)
    assert backend.torch_requirement() == []
    assert sys.path[-1] == folder


@pytest.mark.parametrize("version", [None, "2.9.1"], ids=["none", "too-old"])
def test_torch_is_asked_for_where_none_will_do(
    backend: ModuleType, environment_with: Callable, version: str | None
) -> None:
    folder = environment_with(version)
    assert backend.torch_requirement() == ["torch>=2.10"]
    assert folder not in sys.path
