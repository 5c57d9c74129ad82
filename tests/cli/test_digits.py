"""A TNT learns handwritten digits; the fused kernels and timm's module learn the same.

scikit-learn's 1,797 scans of 8x8 pixels, at 32 pixels, so that each pixel token of a patch is one
pixel of a scan. The default recipe without what 8x8 digits do not bear (crops, mirroring, mixing).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from cli.helpers import QUIET, rows
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tolerance import TRAINING_DRIFT, TRAINING_START

import tnt.timm_plugin  # noqa: F401
from tnt.cli.main import main

SIZES = {"depth": 2, "embed_dim": 96, "inner_dim": 24, "num_heads_outer": 4}
RUN = ["--img-size", "32", "--in-chans", "1", "--crop-pct", "1", "--no-augment", "--no-ema"]
RUN += ["--mixup", "0", "--cutmix", "0", "--reprob", "0", "--aug-repeats", "0", "--log-every", "1"]
RUN += ["--batch-size", "64", "--epochs", "12", "--warmup-epochs", "1", "--lr", "0.05", *QUIET]
MODELS = {"fused": "tnt_s_patch16_224_fused", "timm": "tnt_s_patch16_224"}
ENOUGH = 95.0  # per cent, of 360 digits that were not trained on


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of two runs from the same weights and seed."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    splits = train_test_split(numbers, test_size=0.2, random_state=0, stratify=digits.target)
    for split, chosen in zip(("train", "val"), splits):
        for i in chosen:
            path = folder / split / str(digits.target[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    start = timm.create_model(MODELS["timm"], img_size=32, in_chans=1, num_classes=10, **SIZES)
    torch.save(start.state_dict(), folder / "start.pth")
    kwargs = ["--model-kwargs", *(str(part) for item in SIZES.items() for part in item)]
    for name, model in MODELS.items():
        arguments = ["train", str(folder), "--output", str(folder / name), "--model", model]
        arguments += [*kwargs, "--weights", str(folder / "start.pth"), *RUN]
        assert main(arguments) == 0
    return {name: folder / name for name in MODELS}


def test_the_loss_curves_coincide(runs: dict[str, Path]) -> None:
    """Step by step in the first epoch, on average over each epoch afterwards."""
    fused, theirs = ([row["loss"] for row in rows(run / "steps.csv")] for run in runs.values())
    assert len(fused) == 12 * (1437 // 64)
    assert fused[:22] == pytest.approx(theirs[:22], rel=TRAINING_START)
    means = [[row["train_loss"] for row in rows(run / "epochs.csv")] for run in runs.values()]
    assert means[0] == pytest.approx(means[1], rel=TRAINING_DRIFT)
    assert fused[0] > 2.0 > 0.8 > fused[-1]


def test_both_read_digits_and_equally_well(runs: dict[str, Path]) -> None:
    fused, theirs = (rows(run / "epochs.csv")[-1]["eval_top1"] for run in runs.values())
    print(f"top-1 on 360 digits: fused {fused:.2f} %, timm {theirs:.2f} %")
    assert min(fused, theirs) >= ENOUGH
    assert abs(fused - theirs) <= 2.0


def test_predict_reads_a_digit(runs: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    folder = runs["fused"].parent / "val"
    right = 0
    for number in range(10):
        path = sorted((folder / str(number)).glob("*.png"))[0]
        weights = ["--weights", str(runs["fused"] / "best.safetensors")]
        assert main(["predict", str(path), *weights, "--top", "1", "--device", "cpu"]) == 0
        right += capsys.readouterr().out.split()[-1] == str(number)
    assert right >= 8
