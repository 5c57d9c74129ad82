"""predict and eval, and what they say when something is wrong."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from cli.helpers import QUIET, SIZES, SMALL, error_of
from PIL import Image

import tnt
from tnt.cli.main import main
from tnt.cli.models import Description, _describe, build
from tnt.cli.options import parse
from tnt.cli.saving import export


@pytest.fixture(scope="module")
def photo(photos: Path) -> Path:
    return photos / "val" / "china" / "00.png"


def test_predict_prints_classes_of_the_file_with_the_models_probabilities(
    photo: Path, small_weights: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["predict", str(photo), "--weights", str(small_weights), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo)
    percent = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in lines[1:]}

    model = tnt.TNT(img_size=32, num_classes=2, **SIZES).eval()
    tnt.load_checkpoint(model, small_weights)
    image = Image.open(photo).convert("RGB").resize((35, 35), Image.BICUBIC)
    pixels = np.asarray(image.crop((1, 1, 33, 33)), dtype=np.float32) / 127.5 - 1
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).softmax(1)[0]
    assert percent.keys() == {"china", "flower"}
    assert [percent["china"], percent["flower"]] == pytest.approx(
        (100 * expected).tolist(),
        abs=0.5,  # printed with one digit; Pillow rounds its own way
    )


def test_predict_names_imagenets_classes_and_reads_a_bare_state_dict(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tnt.TNT(img_size=32, **SIZES)
    with torch.no_grad():
        model.head.bias[281] = 100.0
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth.tar")
    weights = ["--weights", str(tmp_path / "w.pth.tar")]
    assert main(["predict", str(photo), *weights, *SMALL, "--device", "cpu", "--top", "1"]) == 0
    assert "tabby, tabby cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("hub", "timm/tnt_s_patch16_224.in1k"), ("hf-hub:someone/else", "someone/else")],
)
def test_weights_of_the_hub_are_those_that_timm_publishes(
    weights: str,
    expected: str,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    model = tnt.tnt_s(depth=1)
    with torch.no_grad():
        model.head.bias[281] = 100.0
    asked = []

    def download(hub_id: str, *_: object, **__: object) -> dict[str, torch.Tensor]:
        asked.append(hub_id)
        return model.state_dict()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    arguments = ["predict", str(photo), "--weights", weights, "--model-kwargs", "depth", "1"]
    assert main([*arguments, "--top", "1"]) == 0
    assert asked == [expected]
    assert "tabby, tabby cat" in capsys.readouterr().out
    options = parse("finetune", ["data", "--model-kwargs", "depth", "1"])
    tuned, description = build(options, weights, num_classes=3, class_names=["a", "b", "c"])
    assert (description.img_size, tuned.head.weight.shape[0]) == (384, 3)
    assert torch.equal(tuned.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert tuned.patch_pos.shape[1] == 1 + 24 * 24


@pytest.mark.parametrize("amp", ["bf16", None])
def test_eval_counts_every_image_once_in_batches_of_any_size(
    photos: Path, small_weights: Path, amp: str | None, capsys: pytest.CaptureFixture
) -> None:
    printed = []
    for batch in ("3", "10"):
        more = ["--amp", amp] if amp else []
        arguments = ["eval", str(photos), "--weights", str(small_weights), *QUIET, *more]
        assert main([*arguments, "--batch-size", batch]) == 0
        printed.append(capsys.readouterr().out.strip())
    assert printed[0] == printed[1]
    assert printed[0].startswith("10 images: top-1 ")
    assert "top-5 100.00 %" in printed[0]  # of two classes


def test_eval_numbers_classes_as_the_weights_do(
    photos: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A folder that lacks the first class: the other one keeps its number."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "flower").symlink_to(photos / "val" / "flower")
    model = tnt.TNT(img_size=32, num_classes=2, **SIZES)
    tnt.load_checkpoint(model, small_weights)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.0, 100.0]))
    torch.save(model.state_dict(), tmp_path / "flower.pth")
    weights = tmp_path / "flower.safetensors"
    _export_like(small_weights, weights, model)
    assert main(["eval", str(tmp_path), "--weights", str(weights), *QUIET]) == 0
    assert "5 images: top-1 100.00 %" in capsys.readouterr().out


def _export_like(source: Path, target: Path, model: tnt.TNT) -> None:
    description = _describe(source)
    assert description is not None
    export(target, model.state_dict(), description)


def test_exported_files_are_ordinary_safetensors(small_weights: Path) -> None:
    from safetensors import safe_open

    with safe_open(small_weights, "pt") as file:
        described = json.loads(file.metadata()["tnt"])
    assert described["class_names"] == ["china", "flower"]


class TestErrors:
    def test_a_missing_image(self, small_weights: Path, capsys: pytest.CaptureFixture) -> None:
        message = error_of(capsys, "predict", "no.jpg", "--weights", small_weights)
        assert "no.jpg: no such file" in message

    def test_no_image(self, capsys: pytest.CaptureFixture) -> None:
        assert "no image given" in error_of(capsys, "predict")

    @pytest.mark.parametrize("keep", [0, 100])
    def test_a_damaged_image_is_named(
        self,
        photos: Path,
        small_weights: Path,
        keep: int,
        tmp_path: Path,
        capsys: pytest.CaptureFixture,
    ) -> None:
        bad = tmp_path / "val" / "china" / "bad.png"
        bad.parent.mkdir(parents=True)
        whole = (photos / "val" / "china" / "00.png").read_bytes()
        bad.write_bytes(whole[:keep] or b"no image")
        weights = ["--weights", small_weights]
        assert str(bad) in error_of(capsys, "predict", bad, *weights)
        for workers in ("0", "1") if keep else ("0",):
            message = error_of(capsys, "eval", tmp_path, *weights, "--workers", workers)
            assert str(bad) in message and "replace or delete it" in message

    def test_weights_that_are_not_there(self, photo: Path, capsys: pytest.CaptureFixture) -> None:
        assert "no such file" in error_of(capsys, "predict", photo, "--weights", "no.pth")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_weights_that_are_cut_short(
        self, photo: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        path = tmp_path / f"short{suffix}"
        path.write_bytes(b"PK\x03\x04 and no more")
        assert str(path) in error_of(capsys, "predict", photo, "--weights", path)

    def test_a_hostile_pickle_is_not_run(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        witness = tmp_path / "witness"

        class Hostile:
            def __reduce__(self) -> tuple:
                return Path.touch, (witness,)

        path = tmp_path / "hostile.pth"
        torch.save({"model": Hostile()}, path)
        message = error_of(capsys, "predict", photo, "--weights", path)
        assert "was not run" in message
        path.write_bytes(pickle.dumps(Hostile()))
        error_of(capsys, "predict", photo, "--weights", path)
        assert not witness.exists()

    def test_an_unknown_model(self, photo: Path, capsys: pytest.CaptureFixture) -> None:
        message = error_of(capsys, "predict", photo, "--model", "tnt_x", "--weights", "random")
        assert "tnt_x is no model" in message and "tnt_s_patch16_224_fused" in message

    def test_an_argument_that_the_model_does_not_have(
        self, photo: Path, capsys: pytest.CaptureFixture
    ) -> None:
        more = ["--weights", "random", "--model-kwargs", "width", "3"]
        assert "width" in error_of(capsys, "predict", photo, *more)

    def test_an_unknown_device(
        self, photo: Path, small_weights: Path, capsys: pytest.CaptureFixture
    ) -> None:
        more = ["--weights", small_weights, "--device", "abacus"]
        assert "--device abacus" in error_of(capsys, "predict", photo, *more)

    def test_no_network(
        self,
        photo: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        message = error_of(capsys, "predict", photo)
        assert "could not be had" in message and "pass the file as --weights" in message

    def test_data_that_is_not_there(
        self, small_weights: Path, capsys: pytest.CaptureFixture
    ) -> None:
        assert "no such folder" in error_of(capsys, "eval", "no/data", "--weights", small_weights)

    def test_data_without_the_split(
        self, photos: Path, small_weights: Path, capsys: pytest.CaptureFixture
    ) -> None:
        message = error_of(capsys, "eval", photos / "train", "--weights", small_weights)
        assert "it holds china, flower" in message

    def test_a_split_without_images(
        self, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "val").mkdir()
        message = error_of(capsys, "eval", tmp_path, "--weights", small_weights)
        assert "Found 0 images" in message

    def test_a_class_that_the_model_does_not_know(
        self, photos: Path, small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        (tmp_path / "val").mkdir()
        for name in ("china", "flower", "lawn"):
            (tmp_path / "val" / name).symlink_to(photos / "val" / "china")
        message = error_of(capsys, "eval", tmp_path, "--weights", small_weights)
        assert "3 classes" in message and "(lawn) not among the 2" in message

    def test_wrong_number_of_classes(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        torch.save(tnt.TNT(img_size=32, num_classes=9, **SIZES).state_dict(), tmp_path / "9.pth")
        message = error_of(capsys, "eval", photos, "--weights", tmp_path / "9.pth", *SMALL)
        assert "has 2 classes, the model 9" in message

    def test_a_file_may_not_have_timm_load_other_files(
        self, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        kwargs = {**SIZES, "checkpoint_path": "/etc/passwd"}
        description = Description("tnt_s_patch16_224_fused", kwargs, 2, 32, 3, None)
        path = tmp_path / "weights.safetensors"
        export(path, tnt.TNT(img_size=32, num_classes=2, **SIZES).state_dict(), description)
        message = error_of(capsys, "predict", photo, "--weights", path)
        assert "by checkpoint_path; refused" in message

    def test_packages_that_are_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        monkeypatch.delitem(sys.modules, "tnt.cli.options")
        monkeypatch.setitem(sys.modules, "tyro", None)
        message = error_of(capsys, "predict", "photo.jpg")
        assert "tyro is not installed; pip install 'tnt-kernels[train]'" in message

    def test_an_unknown_command(self, capsys: pytest.CaptureFixture) -> None:
        assert main(["trian"]) == 2
        printed = capsys.readouterr()
        assert "'trian' is no command" in printed.err
        assert "finetune" in printed.out
