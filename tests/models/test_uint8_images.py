"""Models that normalise uint8 images themselves."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from models.helpers import SMALL, output_and_gradients, randomize
from timm.models.tnt import TNT as TimmTNT

from tnt import TNT, accelerate, tnt_s
from tnt.models import fusion
from tnt_kernels.reference.pixel_embed import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(**kwargs) -> TNT:
    return randomize(TNT(**{**SMALL, "mean": MEAN, "std": STD, **kwargs}))


def bytes_for(model: TNT, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    shape = (batch, model.in_chans, *model.pixel_embed.img_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(model: TNT, images: torch.Tensor) -> torch.Tensor:
    embed = model.pixel_embed
    return normalise(images, embed.mean, embed.std, embed.proj.weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("legacy", [False, True])
def test_bytes_give_what_normalised_images_give(legacy: bool, dtype: torch.dtype) -> None:
    model = build(legacy=legacy).to(dtype)
    images = bytes_for(model)
    expected = output_and_gradients(model, normalised(model, images))
    found = output_and_gradients(model, images)
    assert set(expected) - set(found) == {"gradient of images"}
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_unfused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "_said", set())  # other tests have met the warning
    model = build()
    images = bytes_for(model)
    expected = model(images)
    model.pixel_embed.proj.register_forward_hook(lambda *_: None)
    with pytest.warns(RuntimeWarning, match="the pixel embedding runs unfused"):
        torch.testing.assert_close(model(images), expected)


def test_one_graph_and_export() -> None:
    model = build(depth=1).eval()
    images = bytes_for(model)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
        exported = torch.export.export(model, (images,)).module()(images)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


def test_statistics_stay_float32_and_outlive_to_empty() -> None:
    model = build().to(torch.bfloat16)
    for name, values in (("mean", MEAN), ("std", STD)):
        assert torch.equal(getattr(model.pixel_embed, name), torch.tensor(values))
    with torch.device("meta"):
        hollow = TNT(**SMALL, mean=MEAN, std=STD)
    assert hollow.pixel_embed.mean.is_meta
    filled = hollow.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    assert torch.equal(filled.pixel_embed.std, torch.tensor(STD))
    images = bytes_for(filled)
    assert torch.equal(filled(images), copy.deepcopy(filled)(images))


def test_names_of_the_state_dict_stay_timms() -> None:
    assert list(build().state_dict()) == list(TimmTNT(**SMALL).state_dict())


def test_statistics_are_those_of_the_config() -> None:
    model = tnt_s(**SMALL)
    assert model.pixel_embed.normalization == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = tnt_s(**SMALL, mean=MEAN, std=STD)
    assert (model.default_cfg["mean"], model.default_cfg["std"]) == (MEAN, STD)
    model.set_normalization(0.1, (0.2, 0.3, 0.4))
    images = bytes_for(model)
    assert torch.equal(model.pixel_embed.mean, torch.tensor([0.1] * 3))
    assert torch.equal(model(images), model(normalised(model, images)))


def test_timms_create_model_takes_them_from_its_config() -> None:
    import tnt.timm_plugin  # noqa: F401

    def created(**kwargs) -> dict:
        model = timm.create_model("tnt_s_patch16_224_fused", depth=1, **kwargs)
        return model.pixel_embed.normalization

    overlay = {"mean": MEAN, "std": STD}
    assert created() == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert created(pretrained_cfg_overlay=overlay) == overlay
    assert created(pretrained_cfg_overlay=overlay, mean=0.1)["mean"] == (0.1,) * 3
    grey = created(pretrained_cfg_overlay=overlay, in_chans=1)
    assert grey["mean"] == pytest.approx((sum(MEAN) / 3,))
    features = timm.create_model("tnt_s_patch16_224_fused", depth=4, features_only=True)
    assert features(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))[0].shape[1] == 384


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean must be a finite number or one for each of the 3 channels"),
        ({"mean": float("nan")}, "mean must be a finite number"),
        ({"mean": None}, "mean must be a finite number .* got None; pass"),
        ({"std": 0.0}, "std must be a positive number"),
        ({"std": (0.5, 0.5, -0.5)}, "std must be a positive number"),
    ],
)
def test_bad_statistics_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"TNT: {message}"):
        TNT(**SMALL, **kwargs)


def test_models_of_timm_do_not_know_them() -> None:
    model = accelerate(TimmTNT(**SMALL))
    with pytest.raises(TypeError, match=r"TNT: images must be floating .* got uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
