"""The definitions themselves: derivatives by finite differences, values against timm's modules."""

from __future__ import annotations

import pytest
import torch
from ops.helpers import as_leaves, differentiable
from tolerance import SAME_MATHS_FLOAT64, assert_close

import tnt_kernels
from tnt_kernels.reference import SPECS
from tnt_kernels.spec import OpSpec

SMALL = {
    "inner_attention": {"P": 2, "S": 4, "C": 6, "heads": 2, "bias": True, "drop_path": 0.4},
    "inner_mlp": {"P": 2, "S": 4, "C": 5, "H": 7, "drop_path": 0.4},
    "inner_block": {"P": 2, "S": 4, "C": 4, "heads": 2, "H": 5, "drop_path": 0.4},
    "pixel_embed": {"B": 1, "Cin": 2, "H": 8, "W": 4, "C": 3, "patch": 4, "stride": 2, "k": 3},
    "pixel_to_patch": {"B": 2, "N": 2, "S": 2, "C": 3, "D": 5, "dialect": "published"},
    "outer_attention": {"B": 2, "N": 3, "heads": 2, "head_dim": 2},
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)
def test_gradients_match_finite_differences(spec: OpSpec) -> None:
    """First and second derivatives of every definition in float64."""
    args = as_leaves(spec, spec.make_args(SMALL[spec.name], torch.float64, "cpu"))
    names = [n for n in differentiable(spec) if args[n] is not None]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return spec.reference(*{**args, **dict(zip(names, values))}.values())

    values = tuple(args[n] for n in names)
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values, nondet_tol=0.0, fast_mode=True)


@pytest.fixture(scope="module", params=["published", "legacy"])
def timm_model(request: pytest.FixtureRequest) -> torch.nn.Module:
    """A one-block timm TNT of either dialect in float64, with weights that are not trivial."""
    tnt = pytest.importorskip("timm.models.tnt")
    torch.manual_seed(3)
    model = tnt.TNT(
        img_size=(32, 48),
        embed_dim=96,
        inner_dim=24,
        depth=1,
        num_heads_outer=4,
        qkv_bias=True,
        legacy=request.param == "legacy",
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def test_pixel_embed_is_timms(timm_model: torch.nn.Module) -> None:
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    stem = timm_model.pixel_embed
    ours = tnt_kernels.pixel_embed(
        images,
        stem.proj.weight,
        stem.proj.bias,
        timm_model.pixel_pos,
        unfold_first=not stem.legacy,
    )
    assert_close(ours, stem(images, timm_model.pixel_pos), SAME_MATHS_FLOAT64, "pixel_embed")


def test_inner_block_is_timms(timm_model: torch.nn.Module) -> None:
    pixels = torch.randn(5, 16, 24, dtype=torch.float64)
    block = timm_model.blocks[0]
    attention, mlp = block.attn_in, block.mlp_in
    weights = tnt_kernels.InnerBlockWeights(
        block.norm_in.weight,
        block.norm_in.bias,
        attention.qk.weight,
        attention.qk.bias,
        attention.v.weight,
        attention.v.bias,
        attention.proj.weight,
        attention.proj.bias,
        block.norm_mlp_in.weight,
        block.norm_mlp_in.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
    )
    mid = pixels + attention(block.norm_in(pixels))
    out = mid + mlp(block.norm_mlp_in(mid))
    ours = tnt_kernels.inner_block(pixels, weights, num_heads=4)
    assert_close(ours, out, SAME_MATHS_FLOAT64, "inner_block")
    halves = tnt_kernels.InnerAttentionWeights(*weights[:8])
    ours = tnt_kernels.inner_attention(pixels, halves, num_heads=4)
    assert_close(ours, mid, SAME_MATHS_FLOAT64, "inner_attention")
    ours = tnt_kernels.inner_mlp(mid, tnt_kernels.InnerMlpWeights(*weights[8:]))
    assert_close(ours, out, SAME_MATHS_FLOAT64, "inner_mlp")


def test_pixel_to_patch_is_timms(timm_model: torch.nn.Module) -> None:
    pixels = torch.randn(2 * 6, 16, 24, dtype=torch.float64)
    patches = torch.randn(2, 7, 96, dtype=torch.float64)
    block = timm_model.blocks[0]
    norm2 = block.norm2_proj
    weights = tnt_kernels.PixelToPatchWeights(
        block.norm1_proj.weight,
        block.norm1_proj.bias,
        block.proj.weight,
        block.proj.bias,
        None if norm2 is None else norm2.weight,
        None if norm2 is None else norm2.bias,
    )
    if norm2 is None:
        update = block.proj(block.norm1_proj(pixels).reshape(2, 6, -1))
    else:
        update = norm2(block.proj(block.norm1_proj(pixels.reshape(2, 6, -1))))
    expected = torch.cat([patches[:, :1], patches[:, 1:] + update], dim=1)
    ours = tnt_kernels.pixel_to_patch(pixels, weights, patches)
    assert_close(ours, expected, SAME_MATHS_FLOAT64, "pixel_to_patch")


def test_stem_projection_is_timms(timm_model: torch.nn.Module) -> None:
    pixels = torch.randn(12, 16, 24, dtype=torch.float64)
    norm1, proj, norm2 = timm_model.norm1_proj, timm_model.proj, timm_model.norm2_proj
    weights = tnt_kernels.PixelToPatchWeights(
        norm1.weight, norm1.bias, proj.weight, proj.bias, norm2.weight, norm2.bias
    )
    expected = norm2(proj(norm1(pixels.reshape(12, -1))))
    ours = tnt_kernels.pixel_to_patch(pixels, weights)
    assert_close(ours, expected, SAME_MATHS_FLOAT64, "stem")
