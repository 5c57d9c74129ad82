"""Ablations of Tables 5 to 7, squeeze and excitation, drop path, dropout, and bad arguments."""

from __future__ import annotations

import warnings
from functools import partial
from unittest import mock

import pytest
import torch
from models.helpers import (
    SMALL,
    assert_same,
    images_for,
    output_and_gradients,
    randomize,
    timm_and_ours,
)
from timm.models.tnt import TNT as TimmTNT
from tolerance import MODEL_RELATIVE_ERROR, assert_close
from torch import nn

from tnt import TNT, tnt_s
from tnt.models import create, flow
from tnt.models.blocks import DropPath, SqueezeExcite


@pytest.fixture
def fresh_warnings(monkeypatch):
    """Warnings that are given once are given again."""
    monkeypatch.setattr("tnt.models.fusion._said", set())


@pytest.mark.parametrize("use_patch_pos", [False, True])
@pytest.mark.parametrize("use_pixel_pos", [False, True])
def test_table_5_positions(use_patch_pos, use_pixel_pos):
    """A model without a position equals timm's with that position at zero."""
    theirs = randomize(TimmTNT(**SMALL))
    ours = TNT(**SMALL, use_patch_pos=use_patch_pos, use_pixel_pos=use_pixel_pos)
    state = theirs.state_dict()
    unused = set(state) - set(ours.state_dict())
    assert ("patch_pos" in unused, "pixel_pos" in unused) == (not use_patch_pos, not use_pixel_pos)
    for name in unused:
        state.pop(name)
        nn.init.zeros_(getattr(theirs, name))
    ours.load_state_dict(state, strict=True)
    assert ours.no_weight_decay() == {"patch_pos", "pixel_pos", "cls_token"} - unused
    images = images_for(ours)
    expected = output_and_gradients(theirs, images)
    for name in unused:
        expected.pop(f"gradient of {name}")
    assert_same(output_and_gradients(ours, images), expected)


@pytest.mark.parametrize("num_heads_inner", [1, 2, 4, 8])
def test_table_6_heads_run_fused(num_heads_inner):
    model = TNT(**SMALL, num_heads_inner=num_heads_inner)
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        model(images_for(model))
    assert [call.kwargs["num_heads"] for call in spy.call_args_list] == [num_heads_inner] * 2


@pytest.mark.parametrize(
    ("first_stride", "inner_dim", "num_tokens"), [(2, 6, 64), (4, 24, 16), (8, 96, 4)]
)
def test_table_7_rows_run_fused(first_stride, inner_dim, num_tokens):
    sizes = {"first_stride": first_stride, "inner_dim": inner_dim, "num_heads_inner": 2}
    model = TNT(**{**SMALL, **sizes})
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        model(images_for(model))
    assert spy.call_args.args[0].shape == (32, num_tokens, inner_dim)


def test_squeeze_and_excitation_is_the_formula():
    gate = randomize(SqueezeExcite(64))
    norm, fc1, _, fc2, _ = gate.fc
    m = torch.randn(2, 17, 64)
    hidden = torch.relu(fc1(nn.functional.layer_norm(m.mean(1), (64,), norm.weight, norm.bias)))
    expected = m * torch.tanh(fc2(hidden))[:, None]
    assert fc1.weight.shape == (16, 64)
    assert_close(gate(m), expected, MODEL_RELATIVE_ERROR, "gated")


def test_squeeze_and_excitation_gates_the_outer_mlp():
    """With gates at tanh(0) = 0 the model is the plain one; with other gates it is not."""
    _, plain = timm_and_ours(**SMALL)
    gated = TNT(**SMALL, se=True)
    missing = gated.load_state_dict(plain.state_dict(), strict=False)
    assert all(".se_layer." in key for key in missing.missing_keys)
    for block in gated.blocks:
        nn.init.zeros_(block.se_layer.fc[3].weight)
    images = images_for(plain)
    assert_close(gated(images), plain(images), MODEL_RELATIVE_ERROR, "closed gates")
    for block in gated.blocks:
        nn.init.constant_(block.se_layer.fc[3].bias, 20.0)  # tanh(20) = 1: the branch doubles
        plain_fc2 = plain.get_submodule(f"blocks.{list(gated.blocks).index(block)}.mlp.fc2")
        plain_fc2.weight.data.mul_(2)
        plain_fc2.bias.data.mul_(2)
    assert_close(gated(images), plain(images), MODEL_RELATIVE_ERROR, "open gates")


def test_drop_path_takes_timms_paths():
    theirs, ours = timm_and_ours(**{**SMALL, "depth": 3}, drop_path_rate=0.6)
    images = images_for(ours)
    for seed in (0, 1):
        torch.manual_seed(seed)
        expected = output_and_gradients(theirs, images)
        torch.manual_seed(seed)
        assert_same(output_and_gradients(ours, images), expected)
    assert_close(ours.eval()(images), theirs.eval()(images), MODEL_RELATIVE_ERROR, "eval")


def test_drop_path_statistics():
    """Per patch inside, per image outside; kept rows are scaled so that the mean stays."""
    drop = DropPath(0.25).train()
    for rows in (20_000, 20_001):
        kept = drop(torch.ones(rows, 2, 3))
        values = kept.unique()
        assert values.tolist() == [0.0, pytest.approx(1 / 0.75)]
        assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
        assert kept.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(kept), kept)
    assert torch.count_nonzero(DropPath(1.0).train()(torch.ones(8, 2))) == 0


def test_drop_path_factors_are_per_patch_inside():
    ours = TNT(**{**SMALL, "depth": 3}, drop_path_rate=0.5)
    assert [getattr(block.drop_path, "drop_prob", 0) for block in ours.blocks] == [0, 0.25, 0.5]
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        ours(images_for(ours))
    calls = [call.kwargs for call in spy.call_args_list]
    assert calls[0]["drop_path_attn"] is None
    for rate, call in zip((0.25, 0.5), calls[1:], strict=True):
        for name in ("drop_path_attn", "drop_path_mlp"):
            assert call[name].shape == (32,)
            kept = call[name][call[name] != 0]
            assert 0 < len(kept) < 32
            assert kept.tolist() == [pytest.approx(1 / (1 - rate))] * len(kept)
        assert not torch.equal(call["drop_path_attn"], call["drop_path_mlp"])


@pytest.mark.parametrize("option", ["attn_drop_rate", "proj_drop_rate"])
def test_dropout_in_the_inner_flow_runs_unfused_and_says_so_once(option, fresh_warnings):
    model = TNT(**SMALL, **{option: 0.5})
    images = images_for(model)
    with (
        mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy,
        pytest.warns(RuntimeWarning, match="inner transformer runs unfused: .* of 0.5 is active"),
    ):
        first = model(images)
    assert spy.call_count == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.allclose(model(images), first)  # another draw
        model.eval()
        with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
            assert torch.equal(model(images), model(images))
    assert spy.call_count == 4


@pytest.mark.parametrize("option", ["drop_rate", "pos_drop_rate"])
def test_dropout_elsewhere_keeps_the_inner_flow_fused(option):
    model = TNT(**SMALL, **{option: 0.5})
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        first, second = model(images_for(model)), model(images_for(model))
    assert spy.call_count == 4
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("option", ["attn_drop_rate", "proj_drop_rate", "drop_rate"])
def test_dropout_in_eval_changes_nothing(option):
    theirs, ours = timm_and_ours(**SMALL, **{option: 0.5})
    images = images_for(ours)
    got, expected = ours.eval()(images), theirs.eval()(images)
    assert_close(got, expected, MODEL_RELATIVE_ERROR, "eval")


def test_proj_dropout_follows_timm_where_both_drop_the_same():
    """Without attention dropout the two models draw the same numbers in the same order."""
    theirs, ours = timm_and_ours(**SMALL, proj_drop_rate=0.3)
    images = images_for(ours)
    torch.manual_seed(7)
    expected = output_and_gradients(theirs, images)
    torch.manual_seed(7)
    assert_same(output_and_gradients(ours, images), expected)


class RmsNorm(nn.RMSNorm):
    """A norm that the kernels do not know."""


@pytest.mark.parametrize(
    "norm_layer", [RmsNorm, partial(nn.LayerNorm, eps=1e-2)], ids=["rms", "eps"]
)
def test_other_norms(norm_layer):
    theirs, ours = timm_and_ours(**SMALL, norm_layer=norm_layer)
    images = images_for(ours)
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        got = output_and_gradients(ours, images)
    assert spy.call_count == (0 if norm_layer is RmsNorm else SMALL["depth"])
    assert_same(got, output_and_gradients(theirs, images))


def test_norm_without_weights_runs_unfused(fresh_warnings):
    plain = TNT(**SMALL)
    bare = TNT(**SMALL, norm_layer=partial(nn.LayerNorm, elementwise_affine=False))
    bare.load_state_dict(plain.state_dict(), strict=False)
    images = images_for(plain)
    with pytest.warns(RuntimeWarning, match="LayerNorm without weight and bias"):
        got = bare(images)
    assert_close(got, plain(images), MODEL_RELATIVE_ERROR, "output")


def test_norms_of_different_eps_run_unfused(fresh_warnings):
    theirs, ours = timm_and_ours(**SMALL)
    for model in (theirs, ours):
        model.blocks[0].norm_mlp_in.eps = 1e-2
        model.blocks[1].norm2_proj.eps = 1e-2
    images = images_for(ours)
    with pytest.warns(RuntimeWarning, match="has eps 0.01 beside 1e-05"):
        got = ours(images)
    assert_close(got, theirs(images), MODEL_RELATIVE_ERROR, "output")


BAD_ARGUMENTS = {
    "heads-inner": ({"num_heads_inner": 5}, "num_heads must divide the width 24, got 5"),
    "heads-outer": ({"num_heads_outer": 7}, "num_heads must divide the width 64, got 7"),
    "no-heads": ({"num_heads_inner": 0}, "num_heads must divide the width 24, got 0"),
    "pool": ({"global_pool": "max"}, "global_pool must be one of .*, got 'max'"),
    "image": ({"img_size": 0}, "img_size must be a positive integer or a pair of them, got 0"),
    "image-triple": ({"img_size": (3, 64, 64)}, r"img_size must be .* got \(3, 64, 64\)"),
    "image-too-small": ({"img_size": 8}, r"img_size must hold at least one patch of \(16, 16\)"),
    "patch": ({"patch_size": 2.5}, "patch_size must be a positive integer .*, got 2.5"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_named(name):
    options, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError, match=message):
        TNT(**{**SMALL, **options})


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 48), (2, 1, 64, 64), (3, 64, 64), (2, 3, 224, 224)], ids=str
)
def test_bad_images_are_named(shape):
    with pytest.raises(ValueError, match=r"images must be \(B, 3, 64, 64\), got "):
        TNT(**SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("indices", [0, 3, -1, [2], [-3], []], ids=str)
def test_bad_indices_are_named(indices):
    model = TNT(**SMALL)
    with pytest.raises(ValueError, match="indices must choose from the 2 blocks"):
        model.forward_intermediates(images_for(model), indices=indices)
    with pytest.raises(ValueError, match="indices must choose from the 2 blocks"):
        model.prune_intermediate_layers(indices)


def test_bad_names_are_named():
    model = TNT(**SMALL)
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(images_for(model), output_fmt="NHWC")
    with pytest.raises(ValueError, match="global_pool must be one of"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match=r"name must be one of tnt_s, .*; got 'tnt_x'"):
        create("tnt_x")


def test_integer_images_are_refused_by_the_op():
    with pytest.raises(TypeError, match="images must be float32"):
        TNT(**SMALL)(torch.zeros(1, 3, 64, 64, dtype=torch.int64))


def test_arguments_override_the_variant():
    model = tnt_s(depth=1, embed_dim=192, num_heads_outer=3, num_classes=5, device="meta")
    assert model.head.weight.shape == (5, 192)
    assert len(model.blocks) == 1
    assert model.head.weight.is_meta


@pytest.mark.parametrize("grad", [False, True])
def test_input_and_parameters_are_not_written(grad):
    _, model = timm_and_ours(**SMALL)
    images = images_for(model)
    before = [images.clone(), *(p.clone() for p in model.parameters())]
    with torch.set_grad_enabled(grad):
        pixels, patches = torch.randn(32, 16, 24), torch.randn(2, 17, 64)
        kept = pixels.clone(), patches.clone()
        model(images)
        model.blocks[0](pixels, patches)
    assert torch.equal(pixels, kept[0])
    assert torch.equal(patches, kept[1])
    for value, old in zip([images, *model.parameters()], before, strict=True):
        assert torch.equal(value, old)
