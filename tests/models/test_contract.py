"""timm's interface, compared against timm on the same inputs."""

from __future__ import annotations

import pytest
import timm
import torch
from models.helpers import SMALL, assert_same, images_for, output_and_gradients, timm_and_ours
from timm.data import resolve_data_config
from timm.optim import param_groups_layer_decay
from tolerance import MODEL_RELATIVE_ERROR, assert_close
from torch import nn

from tnt import TNT, tnt_b, tnt_s

DEPTH_3 = {**SMALL, "depth": 3, "img_size": (64, 48)}


def flatten(value):
    """Tensors inside nested lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in flatten(item)]


def compare(got, expected):
    got, expected = flatten(got), flatten(expected)
    assert len(got) == len(expected)
    for i, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours.stride() == theirs.stride() or not theirs.is_contiguous()
        assert_close(ours, theirs, MODEL_RELATIVE_ERROR, f"tensor {i}")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2},
        {"indices": [0, -1]},
        {"indices": [1], "stop_early": True},
        {"norm": True},
        {"return_prefix_tokens": True},
        {"output_fmt": "NLC"},
        {"intermediates_only": True, "return_prefix_tokens": True, "output_fmt": "NLC"},
    ],
    ids=str,
)
def test_forward_intermediates(options, grad):
    theirs, ours = timm_and_ours(**DEPTH_3)
    images = images_for(ours)
    with torch.set_grad_enabled(grad):
        got = ours.forward_intermediates(images, **options)
        compare(got, theirs.forward_intermediates(images, **options))
    # what was taken earlier must not change when later blocks run
    assert type(got) is (list if options.get("intermediates_only") else tuple)


def test_forward_features_and_head():
    for pool in ("token", "avg", ""):
        theirs, ours = timm_and_ours(**SMALL, global_pool=pool)
        images = images_for(ours)
        features = ours.forward_features(images)
        compare(features, theirs.forward_features(images))
        for pre_logits in (False, True):
            got = ours.forward_head(features, pre_logits=pre_logits)
            compare(got, theirs.forward_head(features, pre_logits=pre_logits))


@pytest.mark.parametrize("indices", [1, 2, [0], [0, -2]], ids=str)
@pytest.mark.parametrize("prune_norm", [False, True])
@pytest.mark.parametrize("prune_head", [False, True])
def test_prune_intermediate_layers(indices, prune_norm, prune_head):
    theirs, ours = timm_and_ours(**DEPTH_3)
    options = {"indices": indices, "prune_norm": prune_norm, "prune_head": prune_head}
    assert ours.prune_intermediate_layers(**options) == theirs.prune_intermediate_layers(**options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    compare(ours(images_for(ours)), theirs(images_for(ours)))


def test_reset_classifier_and_get_classifier():
    ours = TNT(**SMALL, dtype=torch.float64).eval()
    ours.reset_classifier(7, "avg")
    assert ours.get_classifier() is ours.head
    assert (ours.num_classes, ours.global_pool) == (7, "avg")
    assert ours.head.weight.dtype is torch.float64
    assert not ours.head.training
    assert ours(images_for(ours).double()).shape == (2, 7)
    ours.reset_classifier(0)
    assert isinstance(ours.head, nn.Identity)
    assert ours(images_for(ours).double()).shape == (2, 64)


def test_groups_for_optimizers():
    theirs, ours = timm_and_ours(**DEPTH_3)
    assert ours.no_weight_decay() == theirs.no_weight_decay()
    assert ours.group_matcher() == theirs.group_matcher()
    groups = [
        param_groups_layer_decay(
            model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.75
        )
        for model in (ours, theirs)
    ]
    scales = [
        [(group["lr_scale"], group["weight_decay"], len(group["params"])) for group in model]
        for model in groups
    ]
    assert scales[0] == scales[1]


def test_attributes():
    theirs, ours = timm_and_ours(**DEPTH_3)
    assert ours.feature_info == theirs.feature_info
    for name in (
        "num_classes",
        "in_chans",
        "global_pool",
        "num_features",
        "head_hidden_size",
        "embed_dim",
        "num_prefix_tokens",
        "num_patches",
        "grad_checkpointing",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("img_size", "patch_size", "grid_size", "num_patches", "new_patch_size", "in_dim"):
        assert getattr(ours.pixel_embed, name) == getattr(theirs.pixel_embed, name), name
    for as_scalar in (True, False):
        expected = theirs.pixel_embed.feat_ratio(as_scalar)
        assert ours.pixel_embed.feat_ratio(as_scalar) == expected
    assert ours.pixel_embed.dynamic_feat_size((96, 32)) == (6, 2)
    assert [tuple(p.shape) for p in ours.parameters()] == [
        tuple(p.shape) for p in theirs.parameters()
    ]


@pytest.mark.parametrize(
    ("build", "name"), [(tnt_s, "tnt_s_patch16_224"), (tnt_b, "tnt_b_patch16_224")]
)
def test_default_config(build, name):
    ours = build(depth=1, device="meta")
    theirs = timm.create_model(name, depth=1, device="meta")
    assert ours.default_cfg is ours.pretrained_cfg
    data = resolve_data_config({}, model=ours)
    assert data == resolve_data_config({}, model=theirs)
    assert data["mean"] == data["std"] == (0.5, 0.5, 0.5)
    for key in ("num_classes", "first_conv", "classifier", "fixed_input_size", "pool_size"):
        assert ours.default_cfg[key] == theirs.default_cfg[key], key


def test_config_tells_the_real_input():
    ours = tnt_s(depth=1, device="meta", img_size=(64, 96), in_chans=1, num_classes=3)
    assert ours.default_cfg["input_size"] == (1, 64, 96)
    assert ours.default_cfg["num_classes"] == 3


def test_gradient_checkpointing_changes_nothing():
    _, ours = timm_and_ours(**SMALL)
    images = images_for(ours)
    expected = output_and_gradients(ours, images)
    ours.set_grad_checkpointing()
    assert_same(output_and_gradients(ours, images), expected)
    ours.set_grad_checkpointing(False)
    assert not ours.grad_checkpointing


def test_initial_values_are_distributed_as_timms():
    torch.manual_seed(0)
    theirs = timm.create_model("tnt_s_patch16_224", depth=1).state_dict()
    torch.manual_seed(0)
    ours = tnt_s(depth=1).state_dict()
    for key, value in theirs.items():
        spread, mean = value.std(correction=0).item(), value.mean().item()
        assert ours[key].std(correction=0).item() == pytest.approx(spread, rel=0.2), key
        assert ours[key].mean().item() == pytest.approx(mean, abs=0.2 * spread + 1e-9), key


def test_submodule_hooks_are_served():
    """A hook on a layer that fusion would skip is called, and the result is the same."""
    _, ours = timm_and_ours(**SMALL)
    images = images_for(ours)
    expected = ours(images)
    seen = []
    handles = [
        ours.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.append(name)
        )
        for name in ("blocks.0.attn_in.qk", "blocks.1.mlp_in", "blocks.0.attn_out", "norm1_proj")
    ]
    with pytest.warns(RuntimeWarning, match="hooks"):
        got = ours(images)
    assert sorted(seen) == [
        "blocks.0.attn_in.qk",
        "blocks.0.attn_out",
        "blocks.1.mlp_in",
        "norm1_proj",
    ]
    assert_close(got, expected, MODEL_RELATIVE_ERROR, "output with hooks")
    for handle in handles:
        handle.remove()
    assert torch.equal(ours(images), expected)
