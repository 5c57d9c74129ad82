"""finetune: other data, other classes, other sizes; torchvision's datasets."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from cli.helpers import QUIET, error_of, rows
from PIL import Image
from scipy.io import savemat

from tnt.cli import finetune, train
from tnt.cli.data import Images, class_names, open_dataset
from tnt.cli.main import main
from tnt.cli.models import build
from tnt.cli.options import FinetuneOptions, parse
from tnt.models.checkpoint import load_checkpoint

SHORT = [*QUIET, "--batch-size", "8", "--epochs", "1", "--log-every", "1", "--warmup-epochs", "0"]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of plain grey images, learned in a few steps."""
    root = tmp_path_factory.mktemp("tones")
    for split, count in (("train", 16), ("validation", 4)):
        for number, tone in enumerate((10, 128, 245)):
            folder = root / split / f"tone{number}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (tone, tone, tone)).save(folder / f"{i}.png")
    return root


def test_other_classes_and_size_are_learned_from_a_file(
    tones: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["finetune", str(tones), "--output", str(tmp_path), "--img-size", "48", *SHORT]
    arguments += ["--weights", str(small_weights), "--epochs", "8", "--lr", "0.1", "--no-augment"]
    arguments += ["--mixup", "0", "--cutmix", "0", "--reprob", "0", "--no-ema"]
    assert main(arguments) == 0
    assert rows(tmp_path / "epochs.csv")[-1]["eval_top1"] == 100.0
    capsys.readouterr()
    photo = str(tones / "validation" / "tone2" / "0.png")
    assert main(["predict", photo, "--weights", str(tmp_path / "best.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("tone2")


def test_a_run_begins_with_the_weights_of_the_file_and_a_new_head(small_weights: Path) -> None:
    options = parse("finetune", ["data", "--img-size", "64"])
    model, description = build(options, str(small_weights), num_classes=3, class_names=["a"] * 3)
    assert (description.img_size, description.num_classes) == (64, 3)
    assert model.head.weight.shape[0] == 3
    assert model.patch_pos.shape[1] == 1 + 4 * 4
    source, _ = build(options, str(small_weights))
    again = build(options, None, found=description)[0]
    load_checkpoint(again, small_weights, drop_head=True)  # interpolates as the command does
    assert torch.equal(model.patch_pos, again.patch_pos)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("dataset", "epochs"), [("torch/cifar10", 64), ("torch/cifar100", 64), ("torch/pets", 300)]
)
def test_default_is_table_8(dataset: str, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(train, "run", seen.append)
    finetune.run(parse("finetune", ["data", "--dataset", dataset]))
    assert (seen[0].epochs, seen[0].img_size, seen[0].weights) == (epochs, 384, "hub")


def test_a_missing_dataset_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("cifar10", "cifar100", "flowers102", "pets"):
        message = error_of(capsys, "finetune", tmp_path, "--dataset", f"torch/{name}")
        assert "--download fetches it" in message


def test_a_download_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def download(_: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    arguments = ["finetune", tmp_path / "new" / "folder", "--dataset", "torch/cifar10"]
    message = error_of(capsys, *arguments, "--download")
    assert "no network" in message and "--download fetches" not in message
    assert "no such folder" in error_of(capsys, "finetune", tmp_path / "none", *arguments[2:])


@pytest.mark.parametrize("name", ["wds/x", "imagenet", "torch/none"])
def test_datasets_that_cannot_be_used(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    message = error_of(capsys, "finetune", tmp_path, "--dataset", name)
    assert name.removeprefix("torch/") in message


def noise_image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_pets_are_read_from_torchvisions_layout(
    small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "oxford-iiit-pet"
    for split, ids in (("trainval", range(8)), ("test", range(8, 11))):
        lines = []
        for i in ids:
            name = f"{('Abyssinian', 'beagle')[i % 2]}_{i}"
            noise_image(root / "images" / f"{name}.jpg")
            lines.append(f"{name} {i % 2 + 1} 1 1")
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    arguments = [str(tmp_path), "--dataset", "torch/pets"]
    run = ["--output", str(tmp_path / "run"), "--img-size", "32", "--weights", str(small_weights)]
    assert main(["finetune", *arguments, *run, *SHORT]) == 0
    capsys.readouterr()
    weights = ["--weights", str(tmp_path / "run" / "best.safetensors")]
    assert main(["eval", *arguments, *weights, *QUIET]) == 0
    assert capsys.readouterr().out.startswith("3 images")
    photo = str(root / "images" / "Abyssinian_0.jpg")
    assert main(["predict", photo, *weights]) == 0
    assert "Abyssinian" in capsys.readouterr().out


def test_flowers_train_on_both_small_splits_of_table_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flowers = torchvision.datasets.Flowers102
    monkeypatch.setattr(flowers, "_check_integrity", lambda _: True)  # of the 350 MB original
    root = tmp_path / "flowers-102"
    for i in range(1, 8):
        noise_image(root / "jpg" / f"image_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.arange(1, 8)[None]})
    splits = {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6, 7]]}
    savemat(root / "setid.mat", splits)
    options = FinetuneOptions(data=str(tmp_path), dataset="torch/flowers102")
    training, test = (open_dataset(options, split) for split in ("train", "val"))
    assert (len(training), len(test)) == (4, 3)
    assert len(class_names(training)) == len(class_names(test)) == 102
    images = Images(training, lambda image: image.size, 3)
    assert [images[i, 0] for i in range(4)] == [((30, 40), i) for i in range(4)]


def test_cifar_is_read_by_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "_check_integrity", lambda _: True)  # of the 170 MB original
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        count = 4 if name == "test_batch" else 6
        content = {"data": np.zeros((count, 3072), np.uint8), "labels": [1] * count}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", ""]])
    options = FinetuneOptions(data=str(tmp_path), dataset="torch/cifar10")
    training, test = (open_dataset(options, split) for split in ("train", "val"))
    assert (len(training), len(test)) == (6, 4)
    assert class_names(training) == list("abcdefghij")
    assert Images(test, lambda image: image.size, 3)[0, 0] == ((32, 32), 1)
