"""Small data, models and runs that the tests of the commands share."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from tnt.cli.main import main

SIZES = {"depth": 1, "embed_dim": 48, "inner_dim": 24, "num_heads_outer": 2}
SMALL_MODEL = ["--model-kwargs", *(str(part) for item in SIZES.items() for part in item)]
SMALL = [*SMALL_MODEL, "--img-size", "32"]
QUIET = ["--workers", "0", "--device", "cpu"]


def photo_folder(root: Path, per_class: int = 16, validation: int = 5) -> Path:
    """train/ and val/ with crops of the two photographs that scikit-learn ships, as classes."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images):
        for split, count in (("train", per_class), ("val", validation)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                top, left = (int(rng.integers(0, side - 200)) for side in photo.shape[:2])
                crop = Image.fromarray(photo[top : top + 200, left : left + 200])
                crop.resize((48, 48)).save(folder / f"{i:02d}.png")
    return root


def rows(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers."""
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line with which a failing command ends."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    last = printed.splitlines()[-1]
    assert last.startswith("tnt: error: ")
    return last
