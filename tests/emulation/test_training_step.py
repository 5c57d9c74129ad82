"""Training steps of TNT-S and TNT-B on an emulated GPU against the plain definitions.

Widths, heads and dialects are those of the models; images are small.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Optional

import pytest
import torch
import torch.nn.functional as F
from emulation.backend import EmulatedBackend, forced
from models.helpers import randomize
from ops.helpers import CONFIRMING_DRAWS
from tolerance import assert_error_rule
from torch import Tensor, nn

import tnt
from tnt.models.blocks import DropPath
from tnt_kernels import use_backend

BATCH = 3
SMALL = {"img_size": 32, "num_classes": 10}
# of two blocks the first drops no paths
MODELS = {
    "tnt_s": (tnt.tnt_s, {"depth": 2}),
    "tnt_b": (tnt.tnt_b, {"depth": 1}),
    "tnt_s_legacy": (tnt.tnt_s_legacy, {"depth": 1}),
}
LOSS_SCALE = 2.0**10  # GradScaler's, in float16
FEW_DRAWS = 4


def build(name: str) -> nn.Module:
    """A model in training, whose last block drops paths."""
    create, options = MODELS[name]
    model = randomize(create(**SMALL, **options)).train()
    model.blocks[-1].drop_path = DropPath(0.3)
    return model


def on_definitions() -> AbstractContextManager:
    return use_backend("reference")


def train(model: nn.Module, seed: int, dtype: Optional[torch.dtype] = None) -> dict[str, Tensor]:
    """Logits, losses and every parameter's gradient of a step, and the logits after it."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).to(model.head.weight.dtype)
    labels = torch.randint(10, (BATCH,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=LOSS_SCALE, enabled=dtype is torch.float16)

    def logits_now() -> Tensor:
        torch.manual_seed(seed)  # of the dropped paths
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            return model(images).to(model.head.weight.dtype)

    logits = logits_now()
    losses = F.cross_entropy(logits, labels, reduction="none")
    scaler.scale(losses.mean()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert not scaler.is_enabled() or scaler.get_scale() == LOSS_SCALE  # nothing overflowed
    gradients = {f"gradient of {n}": p.grad for n, p in model.named_parameters()}
    with torch.no_grad():
        after = logits_now()
    return {"logits": logits.detach(), "losses": losses.detach(), **gradients, "after": after}


def add_draw(
    pools: tuple,
    model: nn.Module,
    seed: int,
    dtype: Optional[torch.dtype],
    on_kernels: Callable[[], AbstractContextManager],
) -> None:
    """Results of the kernels, of PyTorch and in float64, by name, to the three pools."""
    with on_kernels():
        kernel = train(model, seed, dtype)
    with on_definitions():
        pytorch = train(model, seed, dtype)
        exact = train(copy.deepcopy(model).double(), seed)
    for pool, results in zip(pools, (kernel, pytorch, exact), strict=True):
        for name, value in results.items():
            pool.setdefault(name, []).append(value)


def assert_training(
    model: nn.Module,
    dtype: Optional[torch.dtype],
    on_kernels: Callable[[], AbstractContextManager],
    most_draws: int = CONFIRMING_DRAWS,
) -> None:
    """What training gives obeys the error rule; a broken one in more draws, too."""
    pools: tuple = ({}, {}, {})
    for draws in (range(FEW_DRAWS), range(FEW_DRAWS, most_draws)):
        for seed in draws:
            add_draw(pools, model, seed, dtype, on_kernels)
        try:
            for name in pools[0]:
                assert_error_rule(*(torch.stack(pool[name]) for pool in pools), name)
            return
        except AssertionError:
            if draws.stop == most_draws:
                raise


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tnt_s", None),
        ("tnt_s", torch.bfloat16),
        ("tnt_s", torch.float16),
        ("tnt_b", None),
        ("tnt_b", torch.bfloat16),
        ("tnt_s_legacy", None),
        ("tnt_s_legacy", torch.bfloat16),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value or "float32"),
)
def test_training_equals_the_definitions(
    backend: EmulatedBackend, name: str, dtype: Optional[torch.dtype]
) -> None:
    assert_training(build(name), dtype, lambda: forced(backend))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_op_runs_on_the_kernels(
    backend: EmulatedBackend, name: str, checkpointing: bool
) -> None:
    model = build(name)
    model.set_grad_checkpointing(checkpointing)
    with forced(backend):
        model(torch.randn(1, 3, 32, 32)).sum().backward()
    depth = len(model.blocks)
    forwards = 2 * depth if checkpointing else depth
    assert backend.calls == {
        "pixel_embed": 1,
        "pixel_to_patch": 1 + forwards,  # the stem's, too
        "inner_block": forwards,
        "pixel_embed_backward": 1,
        "pixel_to_patch_backward": 1 + depth,
        "inner_block_backward": depth,
    }


@pytest.mark.parametrize("op", ["inner_block", "pixel_embed", "pixel_to_patch"])
def test_a_slightly_wrong_gradient_is_found(backend: EmulatedBackend, op: str) -> None:
    backend.changed[f"{op}_backward"] = lambda found: (found[0], found[1] * (1 + 1e-4))
    with pytest.raises(AssertionError, match="gradient of"):
        assert_training(build("tnt_s_legacy"), None, lambda: forced(backend), FEW_DRAWS)
