"""Our models under timm's factory: names, weights, features, scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from tolerance import MODEL_RELATIVE_ERROR, assert_close

import tnt.timm_plugin
from tnt import TNT

NAMES = timm.list_models("tnt_*_fused")
SMALL = {"img_size": 64, "depth": 2}


def test_names_are_ours_and_timms_stay_timms() -> None:
    assert {
        "tnt_s_patch16_224_fused",
        "tnt_b_patch16_224_fused",
        "tnt_s_legacy_patch16_224_fused",
        "tnt_s_se_patch16_224_fused",
    } <= set(NAMES)
    assert not isinstance(timm.create_model("tnt_s_patch16_224", depth=1), TNT)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_the_model_that_it_says(name: str) -> None:
    model = timm.create_model(name, num_classes=7, **SMALL)
    assert isinstance(model, TNT)
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)
    assert (model.blocks[0].se_layer is not None) == ("_se_" in name)
    assert model.pretrained_cfg["classifier"] == "head"
    assert model.default_cfg["architecture"] == name
    hub = "" if "_se_" in name else f"timm/{name.removesuffix('_fused')}.in1k"
    assert model.pretrained_cfg.get("hf_hub_id", "") == hub


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_s_legacy_patch16_224"])
@pytest.mark.parametrize("img_size", [64, 96])
def test_pretrained_weights_of_timm_give_timms_output(
    name: str, img_size: int, tmp_path: Path
) -> None:
    theirs = timm.create_model(name, num_classes=5, **SMALL)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    kwargs = {
        "num_classes": 5,
        "depth": 2,
        "img_size": img_size,
        "pretrained": True,
        "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 5},
    }
    models = [timm.create_model(n, **kwargs).eval() for n in (name, f"{name}_fused")]
    images = torch.rand(2, 3, img_size, img_size)
    expected, got = (model(images) for model in models)
    assert_close(got, expected, MODEL_RELATIVE_ERROR, "logits")


def test_another_number_of_classes_keeps_the_body(tmp_path: Path) -> None:
    theirs = timm.create_model("tnt_s_patch16_224", num_classes=5, **SMALL)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    ours = timm.create_model(
        f"{NAMES[-2]}", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL
    )
    assert torch.equal(ours.blocks[1].mlp.fc1.weight, theirs.blocks[1].mlp.fc1.weight)
    assert ours.head.weight.shape[0] == 3


def test_features_only_gives_the_maps_of_the_chosen_blocks() -> None:
    torch.manual_seed(0)
    features = timm.create_model(NAMES[-2], features_only=True, out_indices=(0, 1), **SMALL)
    torch.manual_seed(0)
    model = timm.create_model(NAMES[-2], **SMALL)
    images = torch.rand(1, 3, 64, 64)
    expected = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    for got, want in zip(features(images), expected):
        assert got.shape == (1, 384, 4, 4)
        assert torch.equal(got, want)


def test_scripts_of_timm_know_the_names(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, timm\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv[1:], timm.is_model('tnt_b_patch16_224_fused'))\n"
    )
    command = [sys.executable, "-m", "tnt.timm_plugin", str(script), "--model", "x"]
    root = Path(tnt.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "['--model', 'x'] True\n", done.stderr
