"""load_checkpoint: every dialect and wrapper loads, everything else is refused by name."""

from __future__ import annotations

import argparse
import json
import os
import pickle

import pytest
import torch
from models.helpers import SMALL, authors_model, images_for, randomize
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.tnt import TNT as TimmTNT
from timm.models.tnt import checkpoint_filter_fn
from tolerance import MODEL_RELATIVE_ERROR, assert_close

from tnt import TNT, load_checkpoint


@pytest.fixture
def trained():
    """A TNT whose weights a test saves in some form."""
    return randomize(TNT(**SMALL)).eval()


def assert_loaded(model, trained):
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "metric": 81.5},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, model="tnt")},
    "module-prefix": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled": lambda state: {f"_orig_mod.module.{key}": v for key, v in state.items()},
    "nested": lambda state: {"model": {"state_dict": state}},
    "half": lambda state: {key: value.bfloat16() for key, value in state.items()},
}


@pytest.mark.parametrize("legacy_format", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(trained, tmp_path, wrapper, legacy_format):
    path = tmp_path / "model.pth.tar"
    content = WRAPPERS[wrapper](trained.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy_format)
    model = TNT(**SMALL)
    assert load_checkpoint(model, path) is model
    if wrapper == "half":
        trained = trained.bfloat16().float()
    assert_loaded(model, trained)


def test_averaged_weights_are_preferred_and_optional(trained, tmp_path):
    other = randomize(TNT(**SMALL), seed=5)
    content = {"state_dict": other.state_dict(), "state_dict_ema": trained.state_dict()}
    torch.save(content, tmp_path / "last.pth.tar")
    assert_loaded(load_checkpoint(TNT(**SMALL), tmp_path / "last.pth.tar"), trained)
    model = load_checkpoint(TNT(**SMALL), tmp_path / "last.pth.tar", use_ema=False)
    assert_loaded(model, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_safetensors(trained, tmp_path, dtype, suffix):
    state = {key: value.to(dtype) for key, value in trained.state_dict().items()}
    save_file(state, tmp_path / f"model{suffix}", metadata={"format": "pt"})
    model = load_checkpoint(TNT(**SMALL), str(tmp_path / f"model{suffix}"))
    assert_loaded(model, trained.to(dtype).float())


@pytest.mark.parametrize("se", [False, True])
def test_the_authors_file(tmp_path, se):
    theirs = authors_model(se=int(se)).eval()
    torch.save(theirs.state_dict(), tmp_path / "tnt_s_81.5.pth.tar")
    ours = load_checkpoint(TNT(**SMALL, se=se), tmp_path / "tnt_s_81.5.pth.tar").eval()
    images = images_for(ours)
    assert_close(ours(images), theirs(images), MODEL_RELATIVE_ERROR, "output")
    if not se:
        expected = checkpoint_filter_fn(theirs.state_dict(), TimmTNT(**SMALL))
        assert expected.keys() == ours.state_dict().keys()
        assert all(torch.equal(ours.state_dict()[key], expected[key]) for key in expected)


def test_timm_model_takes_the_authors_file(tmp_path):
    theirs = authors_model().eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "tnt.pth")
    model = load_checkpoint(TimmTNT(**SMALL), tmp_path / "tnt.pth").eval()
    images = images_for(model)
    assert_close(model(images), theirs(images), MODEL_RELATIVE_ERROR, "output")


@pytest.mark.parametrize("img_size", [96, 32, (64, 96), (32, 112)], ids=str)
def test_positions_of_another_image_size(trained, tmp_path, img_size):
    torch.save(trained.state_dict(), tmp_path / "224.pth")
    model = TNT(**{**SMALL, "img_size": img_size})
    load_checkpoint(model, tmp_path / "224.pth")
    source = trained.patch_pos
    expected = resample_abs_pos_embed(source, new_size=model.pixel_embed.grid_size)
    assert torch.equal(model.patch_pos, expected)
    assert torch.equal(model.patch_pos[:, 0], source[:, 0])
    assert model(images_for(model)).isfinite().all()


def test_positions_of_a_rectangle_need_its_grid(tmp_path):
    source = randomize(TNT(**{**SMALL, "img_size": (32, 96)}))
    torch.save(source.state_dict(), tmp_path / "wide.pth")
    model = TNT(**SMALL)
    with pytest.raises(ValueError, match=r"patch_pos holds 12 patch positions.*source_grid"):
        load_checkpoint(model, tmp_path / "wide.pth")
    load_checkpoint(model, tmp_path / "wide.pth", source_grid=(2, 6))
    options = {"new_size": (4, 4), "old_size": (2, 6)}
    assert torch.equal(model.patch_pos, resample_abs_pos_embed(source.patch_pos, **options))


def test_another_number_of_classes(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    model = TNT(**{**SMALL, "num_classes": 3})
    head = model.head.weight.clone()
    with pytest.raises(ValueError, match=r"head.weight .* is \(10, 64\), the model's is \(3, 64\)"):
        load_checkpoint(model, tmp_path / "model.pth")
    load_checkpoint(model, tmp_path / "model.pth", drop_head=True)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm.weight, trained.norm.weight)


def test_model_without_head_and_file_without_head(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "model.pth")
    bare = load_checkpoint(TNT(**{**SMALL, "num_classes": 0}), tmp_path / "model.pth")
    assert torch.equal(bare.norm.weight, trained.norm.weight)
    torch.save(bare.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"lacks head.weight, head.bias; pass drop_head=True"):
        load_checkpoint(TNT(**SMALL), tmp_path / "bare.pth")
    load_checkpoint(TNT(**SMALL), tmp_path / "bare.pth", drop_head=True)


MISMATCHES = {
    "published-into-legacy": ({}, {"legacy": True}, "published dialect: .* legacy=False"),
    "legacy-into-published": ({"legacy": True}, {}, "legacy dialect: build tnt_s_legacy"),
    "se-into-plain": ({"se": True}, {}, r"se_layer.fc.0.weight.*se=True"),
    "plain-into-se": ({}, {"se": True}, r"se_layer.fc.0.weight.*se=False"),
    "bias-into-none": ({"qkv_bias": True}, {}, r"attn_in.qk.bias.*qkv_bias=True"),
    "none-into-bias": ({}, {"qkv_bias": True}, r"attn_in.qk.bias.*qkv_bias=False"),
    "no-position": ({"use_pixel_pos": False}, {}, "lacks pixel_pos; .*use_pixel_pos=False"),
    "more-blocks": ({"depth": 3}, {}, r"blocks.2.norm_in.weight.* and \d+ more"),
    "fewer-blocks": ({"depth": 1}, {}, r"lacks blocks.1.norm_in.weight"),
    "gray": ({"in_chans": 1}, {}, r"pixel_embed.proj.weight .*\(24, 1, 7, 7\).*in_chans"),
    "width": ({"embed_dim": 32}, {}, r"cls_token .*\(1, 1, 32\), the model's is \(1, 1, 64\)"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_file_of_another_model_names_the_key_and_changes_nothing(tmp_path, name):
    saved, built, message = MISMATCHES[name]
    torch.save(TNT(**{**SMALL, **saved}).state_dict(), tmp_path / "model.pth")
    model = randomize(TNT(**{**SMALL, **built}))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, tmp_path / "model.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_hostile_pickles_are_refused(trained, tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth.tar"
    content = {"state_dict": trained.state_dict(), "args": Hostile()}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"args": Hostile()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match=r"load_checkpoint: .*model.pth.tar .*was not run"):
        load_checkpoint(TNT(**SMALL), path)
    assert not (tmp_path / "hostile-was-here").exists()


BAD_CONTENT = {
    "list": ([1, 2], "holds list, not a state dict"),
    "empty": ({}, "holds dict, not a state dict"),
    "numbers": ({"head.weight": 3}, "'head.weight' in .* is int, not a tensor"),
    "optimizer": ({"optimizer": {"lr": 0.1}}, "'optimizer' in .* is dict, not a tensor"),
}


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_files_without_a_state_dict(tmp_path, name):
    content, message = BAD_CONTENT[name]
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(TNT(**SMALL), tmp_path / "model.pth")


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.pth"):
        load_checkpoint(TNT(**SMALL), "nowhere.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [0, 5, 9, 300, 40_000])
def test_files_cut_short(trained, tmp_path, suffix, size):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(trained.state_dict(), path)
    else:
        save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"load_checkpoint: .*model{suffix}"):
        load_checkpoint(TNT(**SMALL), path)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_ENTRIES = {
    "not-an-entry": 7,
    "no-dtype": {"shape": [2], "data_offsets": [0, 8]},
    "unknown-dtype": {**F32, "dtype": "F8_E4M3"},
    "shape-too-large": {**F32, "shape": [1 << 40, 1 << 40]},
    "negative-shape": {**F32, "shape": [-1, -2]},
    "negative-offset": {**F32, "data_offsets": [-8, 0]},
    "offset-beyond-end": {**F32, "data_offsets": [8, 16]},
    "backwards": {**F32, "data_offsets": [8, 0]},
    "float-offset": {**F32, "data_offsets": [0.0, 8.0]},
    "three-offsets": {**F32, "data_offsets": [0, 4, 8]},
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_malformed_safetensors(tmp_path, name):
    header = json.dumps({"norm.weight": BAD_ENTRIES[name]}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(
        ValueError, match=r"norm.weight in .*model.safetensors .*get the file again"
    ):
        load_checkpoint(TNT(**SMALL), path)


@pytest.mark.parametrize("header", [b"[1]", b"{", b"\xff\xfe", b"[" * 3000])
def test_malformed_safetensors_header(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"the header of .* cannot be read"):
        load_checkpoint(TNT(**SMALL), path)
