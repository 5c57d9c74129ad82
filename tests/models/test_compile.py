"""torch.compile without graph breaks, torch.export, functional_call, and import without timm."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.helpers import SMALL, assert_same, images_for, output_and_gradients, timm_and_ours
from tolerance import ERROR_RATIO, MODEL_RELATIVE_ERROR, assert_close, relative_error
from torch.export import Dim

import tnt
from tnt import TNT, accelerate

VARIANTS = {
    "plain": {},
    "legacy": {"legacy": True},
    "se": {"se": True},
    "drop-path": {"drop_path_rate": 0.4},
    "dropout": {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2},
}


@pytest.fixture(autouse=True)
def fresh_dynamo():
    """No test sees what another one compiled."""
    torch._dynamo.reset()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_one_graph(name, training):
    model = TNT(**SMALL, **VARIANTS[name]).train(training)
    images = images_for(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if training and name in ("drop-path", "dropout"):
        assert compiled(images).isfinite().all()
        return
    assert_same_when_compiled(compiled, model, images)


def assert_same_when_compiled(compiled, model, images):
    """Output and gradients of the compiled model are those of the model itself."""
    results = output_and_gradients(compiled, images)
    results = {name.replace("_orig_mod.", ""): value for name, value in results.items()}
    assert_same(results, output_and_gradients(model, images))


def test_inductor_inference_under_autocast():
    _, model = timm_and_ours(**{**SMALL, "depth": 1})
    model.eval()
    images = images_for(model)
    exact = copy.deepcopy(model).double()(images.double())
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = compiled(images), model(images)
    assert relative_error(got, exact) <= ERROR_RATIO * relative_error(expected, exact)


def test_inductor_training():
    _, model = timm_and_ours(**{**SMALL, "depth": 1})
    assert_same_when_compiled(torch.compile(model, fullgraph=True), model, images_for(model))


def trained(step, model, images):
    """Losses of two steps, and the parameters after them."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)  # of the dropped paths
        loss = step(model, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **dict(model.named_parameters())}


@pytest.mark.parametrize(("checkpointing", "autocast"), [(False, False), (True, True)])
def test_training_steps_with_dropped_paths(checkpointing, autocast):
    _, model = timm_and_ours(**SMALL, drop_path_rate=0.4)
    model.set_grad_checkpointing(checkpointing)
    images, labels = images_for(model), torch.tensor([3, 7])

    def step(model, images):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return F.cross_entropy(model(images).float(), labels)

    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert_same(trained(compiled, model, images), trained(step, model, images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_any_batch_in_one_compilation():
    _, model = timm_and_ours(**SMALL)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    graphs = []
    for batch in (2, 3, 5):
        images = images_for(model, batch)
        assert_close(compiled(images), model(images), MODEL_RELATIVE_ERROR, f"batch {batch}")
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2]


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    _, model = timm_and_ours(**SMALL)
    model.eval()
    images = images_for(model)
    exported = torch.export.export(
        model, (images,), dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}}, strict=strict
    )
    for batch in (1, 2, 7):
        images = images_for(model, batch)
        got = exported.module()(images)
        assert_close(got, model(images), MODEL_RELATIVE_ERROR, f"batch {batch}")


def test_accelerated_timm_model_compiles_and_exports():
    model, _ = timm_and_ours(**SMALL)
    model.eval()
    images = images_for(model)
    expected = model(images)
    accelerate(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(images), expected, MODEL_RELATIVE_ERROR, "compiled")
    got = torch.export.export(model, (images,)).module()(images)
    assert_close(got, expected, MODEL_RELATIVE_ERROR, "exported")


def test_functional_call():
    _, model = timm_and_ours(**SMALL)
    images = images_for(model)
    doubled = {name: 2 * value for name, value in model.state_dict().items()}
    got = torch.func.functional_call(model, doubled, (images,))
    other = TNT(**SMALL)
    other.load_state_dict(doubled)
    assert_close(got, other(images), MODEL_RELATIVE_ERROR, "functional_call")


def test_works_without_timm():
    """The core install has torch and numpy only."""
    here = Path(tnt.__file__).parents[1]
    code = (
        "import sys; sys.modules['timm'] = sys.modules['safetensors'] = None\n"
        "import torch; from tnt import tnt_b\n"
        "model = tnt_b(depth=1, img_size=32).eval()\n"
        "print(tuple(model(torch.rand(1, 3, 32, 32)).shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=here, timeout=120
    )
    assert done.stdout.strip() == "(1, 1000)", done.stderr
