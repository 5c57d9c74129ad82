"""Data and weights made once for all tests of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from cli.helpers import SIZES, photo_folder

from tnt import TNT
from tnt.cli.models import Description
from tnt.cli.saving import export


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models of these tests are too small to share: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images in train/ and 10 in val/, of two classes."""
    return photo_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small TNT for the classes of `photos`, as this program exports it."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    names = ["china", "flower"]
    description = Description("tnt_s_patch16_224_fused", SIZES, 2, 32, 3, names)
    torch.manual_seed(0)
    export(path, TNT(img_size=32, num_classes=2, **SIZES).state_dict(), description)
    return path
