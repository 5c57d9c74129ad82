"""accelerate: timm's and the authors' models run fused and keep all else; restore undoes it."""

from __future__ import annotations

import copy
import io
from unittest import mock

import pytest
import timm
import torch
from models.authors import Block as AuthorsBlock
from models.helpers import (
    SMALL,
    assert_same,
    authors_model,
    images_for,
    output_and_gradients,
    randomize,
    timm_and_ours,
)
from timm.models.tnt import TNT as TimmTNT
from tolerance import MODEL_RELATIVE_ERROR, assert_close
from torch import nn

import tnt
from tnt import accelerate, restore
from tnt.models import flow

DEPTH = SMALL["depth"]
MODELS = {
    "timm": lambda **kwargs: randomize(TimmTNT(**{**SMALL, **kwargs})),
    "timm-legacy": lambda **kwargs: randomize(TimmTNT(**{**SMALL, **kwargs}, legacy=True)),
    "timm-S64": lambda **kwargs: randomize(
        TimmTNT(**{**SMALL, "first_stride": 2, "inner_dim": 6, "num_heads_inner": 2, **kwargs})
    ),
    "authors": authors_model,
    "authors-se": lambda **kwargs: authors_model(se=1, **kwargs),
}


@pytest.fixture
def fused_calls():
    """Counts calls of the fused ops by a model's blocks."""
    with mock.patch.object(flow, "inner_block", wraps=flow.inner_block) as spy:
        yield spy


@pytest.fixture
def fresh_warnings(monkeypatch):
    """Warnings that are given once are given again."""
    monkeypatch.setattr("tnt.models.fusion._said", set())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_same_outputs_and_gradients(name, training, fused_calls):
    model = MODELS[name]().train(training)
    images = images_for(model)
    expected = output_and_gradients(model, images)
    assert fused_calls.call_count == 0
    assert accelerate(model) is model
    fused_calls.reset_mock()
    got = output_and_gradients(model, images)
    assert fused_calls.call_count == DEPTH
    assert_same(got, expected)
    with torch.inference_mode():
        assert_close(model(images), expected["output"], MODEL_RELATIVE_ERROR, "inference")


@pytest.mark.parametrize("name", MODELS)
def test_state_and_objects_stay(name):
    model = MODELS[name]()
    before = model.state_dict(keep_vars=True)
    modules = dict(model.named_modules())
    classes = {name: type(module) for name, module in modules.items()}
    attributes = {name: set(vars(module)) for name, module in modules.items()}
    accelerate(model)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(isinstance(module, classes[name]) for name, module in model.named_modules())
    assert restore(model) is model
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_restore_gives_back_the_same_bits(fused_calls):
    model = MODELS["timm"]()
    images = images_for(model)
    expected = model(images)
    restore(accelerate(model))
    fused_calls.reset_mock()
    assert torch.equal(model(images), expected)
    assert fused_calls.call_count == 0


def _changed_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def _trained(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(images_for(model)).square().sum().backward()
    optimizer.step()


def _loaded(model):
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def _assigned(model):
    state = {name: 1.1 * value for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _normalised(model):
    for block in model.blocks:
        nn.utils.parametrizations.weight_norm(block.mlp_in.fc1)
        with torch.no_grad():
            block.mlp_in.fc1.parametrizations.weight.original0.mul_(1.1)


def _restored_and_changed(model):
    restore(model)
    _changed_in_place(model)
    accelerate(model)


@pytest.mark.parametrize(
    "change",
    [_changed_in_place, _trained, _loaded, _assigned, _normalised, _restored_and_changed],
)
def test_changed_weights_are_seen(change, fused_calls):
    """Fused blocks keep nothing of the weights as they were at a call before."""
    model = accelerate(MODELS["timm"]()).eval()
    images = images_for(model)
    with torch.no_grad():
        before = model(images)
    change(model)
    fused_calls.reset_mock()
    with torch.no_grad():
        after = model(images)
        assert fused_calls.call_count == DEPTH
        assert not torch.equal(after, before)
        anew = MODELS["timm"]()
        if change is _normalised:
            _normalised(anew)
        anew.load_state_dict(copy.deepcopy(model.state_dict()))
        assert torch.equal(after, accelerate(anew).eval()(images))
        assert_close(after, restore(model)(images), MODEL_RELATIVE_ERROR, change.__name__)


def test_twice_is_once_and_restore_without_accelerate_is_nothing():
    model = MODELS["timm"]()
    kinds = [type(module) for module in accelerate(model).modules()]
    assert [type(module) for module in accelerate(model).modules()] == kinds
    restore(restore(model))
    assert type(model.blocks[0]) is timm.models.tnt.Block


def test_training_steps_follow_the_original(fused_calls):
    plain = MODELS["timm"]()
    fast = accelerate(copy.deepcopy(plain))
    images, labels = images_for(plain), torch.tensor([1, 2])
    losses = []
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    assert fused_calls.call_count >= 4 * DEPTH
    assert_close(losses[1], losses[0], 10 * MODEL_RELATIVE_ERROR, "loss after four steps")


@pytest.mark.parametrize("name", ["timm", "authors"])
def test_drop_path_takes_the_same_paths(name):
    model = MODELS[name](drop_path_rate=0.5)
    images = images_for(model)
    torch.manual_seed(3)
    expected = output_and_gradients(model, images)
    torch.manual_seed(4)
    other = model(images)
    assert not torch.allclose(other, expected["output"])
    accelerate(model)
    torch.manual_seed(3)
    assert_same(output_and_gradients(model, images), expected)


def test_inside_other_modules():
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({"net": MODELS["timm"]()})["net"])
    images = images_for(model[1])
    expected = model(images)
    accelerate(model)
    assert type(model[1].blocks[0]).__name__ == "FusedBlock"
    assert_close(model(images), expected, MODEL_RELATIVE_ERROR, "output")


def test_own_model_is_left_alone():
    model = tnt.TNT(**SMALL)
    kinds = [type(module) for module in model.modules()]
    assert accelerate(model) is model
    assert [type(module) for module in model.modules()] == kinds


def test_deepcopy_and_pickle_stay_accelerated(fused_calls):
    model = accelerate(MODELS["timm"]().eval())
    images = images_for(model)
    expected = model(images)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        fused_calls.reset_mock()
        assert torch.equal(other(images), expected)
        assert fused_calls.call_count == DEPTH
        assert type(restore(other).blocks[0]) is timm.models.tnt.Block


def test_hooks_and_replaced_layers_are_respected(fused_calls, fresh_warnings):
    model = accelerate(MODELS["timm"]().eval())
    images = images_for(model)
    seen = []
    handle = model.blocks[0].mlp_in.register_forward_hook(lambda *_: seen.append(1))
    fused_calls.reset_mock()
    with pytest.warns(RuntimeWarning, match="hooks"):
        model(images)
    assert seen == [1]
    assert fused_calls.call_count == DEPTH - 1
    handle.remove()

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer = Doubled(24, 24)
    layer.load_state_dict(model.blocks[1].attn_in.proj.state_dict())
    model.blocks[1].attn_in.proj = layer
    with pytest.warns(RuntimeWarning, match="Doubled"):
        got = model(images)
    assert_close(got, restore(model)(images), MODEL_RELATIVE_ERROR, "replaced layer")


def test_block_hooks_fire():
    model = accelerate(MODELS["timm"]().eval())
    shapes = []
    model.blocks[1].register_forward_hook(
        lambda module, args, output: shapes.append([tuple(x.shape) for x in output])
    )
    model(images_for(model))
    assert shapes == [[(32, 16, 24), (2, 17, 64)]]


def test_hooks_are_not_called_by_the_verification():
    model = MODELS["timm"]()
    called = []
    for module in model.modules():
        module.register_forward_hook(lambda *_: called.append(1))
        module.register_forward_pre_hook(lambda *_: called.append(1))
    state = torch.get_rng_state()
    accelerate(model)
    assert called == []
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_block_that_computes_something_else_is_refused():
    class Biased(AuthorsBlock):
        """The same layers under the same names, and one more term that starts at zero."""

        def __init__(self, *args):
            super().__init__(*args)
            self.extra = nn.Parameter(torch.zeros(()))

        def forward(self, inner, outer):
            inner, outer = super().forward(inner, outer)
            return inner, outer + self.extra

    model = authors_model()
    model.blocks[0] = Biased((64, 2), (24, 4), 16, 4.0, False, 0.0, 0.0, 0.0, 0)
    with pytest.raises(ValueError, match="Biased has the layers of a TNT block but computes"):
        accelerate(model)
    assert type(model.blocks[1]) is AuthorsBlock
    accelerate(model, verify=False)


def test_models_without_tnt_blocks_are_refused():
    with pytest.raises(ValueError, match="ResNet holds no TNT block"):
        accelerate(timm.create_model("resnet10t"))
    with pytest.raises(TypeError, match=r"accelerate: model must be a torch.nn.Module, got dict"):
        accelerate({})
    with pytest.raises(TypeError, match=r"restore: model must be a torch.nn.Module, got str"):
        restore("tnt")


def test_wrong_image_size_is_refused():
    model = accelerate(MODELS["authors"]())
    with pytest.raises(ValueError, match=r"images must be \(64, 64\) pixels, got \(32, 64\)"):
        model(torch.zeros(1, 3, 32, 64))


def test_meta_model():
    with torch.device("meta"):
        model = accelerate(TimmTNT(**SMALL))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", ["timm", "authors"])
def test_under_torch_compile(name):
    model = MODELS[name]().eval()
    images = images_for(model)
    expected = model(images)
    graphs = []

    def capture(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=capture, fullgraph=True)
    assert_close(compiled(images), expected, MODEL_RELATIVE_ERROR, "before")
    accelerate(model)
    assert_close(compiled(images), expected, MODEL_RELATIVE_ERROR, "accelerated")
    compiled(images)
    restore(model)
    assert_close(compiled(images), expected, MODEL_RELATIVE_ERROR, "restored")
    fused = ["tnt_kernels" in graph.code for graph in graphs]
    assert fused in ([False, True], [False, True, False])


def test_other_models_are_not_touched():
    theirs, ours = timm_and_ours(**SMALL)
    images = images_for(theirs)
    accelerate(TimmTNT(**SMALL))
    assert type(theirs.blocks[0]) is timm.models.tnt.Block
    assert_close(ours(images), theirs(images), MODEL_RELATIVE_ERROR, "output")
