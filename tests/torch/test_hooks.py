"""Hooks of modules, layers, parameters and state_dicts, and activation checkpointing."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cbam_fused import CBAM, ChannelAttention, SpatialAttention, reference, replace_cbam
from cbam_fused.ops import registry
from cbam_fused.replace.fuse_masks import fuse_pairs

X = torch.randn(2, 32, 7, 9, generator=torch.Generator().manual_seed(0)).relu()
LAYERS = ("ca", "sa", "ca.fc1", "ca.fc2", "sa.conv1")


@pytest.fixture(autouse=True)
def seeded():
    """With other weights every unit of a hidden layer may be 0, and gradients with them."""
    torch.manual_seed(0)


@pytest.mark.parametrize("cls", [CBAM, reference.CBAM], ids=["fused", "reference"])
@pytest.mark.parametrize("variant", ["tutorial", "official", "hyso", "ultralytics"])
def test_hooks_of_every_layer_run(variant, cls):
    """Also hooks of variants without kernels; the result does not change."""
    module = cls(32, variant=variant).eval()
    plain, calls = copy.deepcopy(module), []
    for name, layer in module.named_modules():
        layer.register_forward_hook(lambda m, args, output, name=name: calls.append(name))
    y = module(X)
    assert {*calls} == {name for name, _ in module.named_modules()}
    torch.testing.assert_close(y, plain(X))


def test_hooks_of_all_modules_see_the_module_alone():
    """register_module_forward_hook: uncalled layers are not seen, and the kernels still run."""
    module, calls = CBAM(32), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, output: calls.append(m))
    try:
        y = module(X)
        assert calls == [module] and module.backend_for(X) == ("cpu", "")
    finally:
        handle.remove()
    assert torch.equal(module(X), y)


@pytest.mark.parametrize("name", LAYERS)
def test_a_hook_can_change_what_a_layer_gives(name):
    module = CBAM(32, 4)
    handle = module.get_submodule(name).register_forward_hook(lambda m, args, output: output * 0)
    assert module.backend_for(X).name == "reference" and "hooks" in module.backend_for(X).reason
    changed = module(X)
    handle.remove()
    assert module.backend_for(X) == ("cpu", "") and not torch.allclose(changed, module(X))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ca, self.sa = ChannelAttention(32), SpatialAttention()

    def forward(self, x):
        x = self.ca(x) * x
        return self.sa(x) * x


def test_hooks_of_masks_that_became_one_call_run():
    block, calls = Block(), []
    plain = copy.deepcopy(block)
    assert fuse_pairs(block) == ([("ca", "sa")], "")
    block.sa.conv1.register_forward_hook(lambda *args: calls.append("conv1"))
    torch.testing.assert_close(block(X), plain(X))
    assert calls == ["conv1"]


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("name", ["", *LAYERS])
def test_backward_hooks_run(name, register):
    module, calls = CBAM(32), []
    getattr(module.get_submodule(name), register)(lambda *args: calls.append(name))
    module(X.clone().requires_grad_()).sum().backward()
    assert calls


def test_hooks_of_parameters_run():
    module, calls = CBAM(32, 4), []  # with two hidden units both may be dead
    module.ca.fc1.weight.register_hook(lambda grad: grad * 0)
    module.ca.fc2.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.abs().max() > 0))
    module(X).sum().backward()
    assert calls == [True] and not module.ca.fc1.weight.grad.any()


def test_a_hook_that_came_after_compilation_runs():
    torch.compiler.reset()
    module, calls = CBAM(32), []
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    compiled(X)
    module.ca.fc1.register_forward_hook(lambda *args: calls.append("fc1"))
    torch.testing.assert_close(compiled(X), module(X))
    assert len(calls) >= 2


def keep_ours(ctx, operator, *args, **kwargs):
    return (
        CheckpointPolicy.MUST_SAVE
        if operator is registry.operators["cpu"].forward
        else CheckpointPolicy.PREFER_RECOMPUTE
    )


@pytest.mark.parametrize(
    "options",
    [
        {"use_reentrant": True},
        {"use_reentrant": False},
        {"use_reentrant": False, "context_fn": partial(create_selective_checkpoint_contexts, keep_ours)},
    ],
    ids=["reentrant", "non-reentrant", "selective"],
)
@pytest.mark.parametrize("variant", ["tutorial", "official"])
def test_checkpointed_module(variant, options):
    module = CBAM(32, variant=variant)
    grads = []
    for forward in (module, partial(checkpoint, module, **options)):
        x = X.clone().requires_grad_()
        module.zero_grad()
        forward(x).square().sum().backward()
        grads.append([x.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


OF_A_MODULE = {
    "forward": lambda m, run: m.register_forward_hook(run, with_kwargs=True, always_call=True),
    "before the forward": lambda m, run: m.register_forward_pre_hook(run, with_kwargs=True),
    "backward": lambda m, run: m.register_full_backward_hook(run),
    "before the backward": lambda m, run: m.register_full_backward_pre_hook(run),
}


@pytest.mark.parametrize("register", OF_A_MODULE.values(), ids=OF_A_MODULE)
def test_hooks_of_a_replaced_module_run(register):
    model, calls = nn.Sequential(nn.Conv2d(32, 32, 1), reference.CBAM(32)), []
    handle = register(model[1], lambda module, *_: calls.append(module))
    assert replace_cbam(model).replaced == {"1": "tutorial"} and calls == []
    model(X).sum().backward()
    assert calls == [model[1]] and type(model[1]) is CBAM
    handle.remove()
    model(X).sum().backward()
    assert calls == [model[1]]


OF_A_STATE = ("state_dict_pre_hook", "state_dict_post_hook", "load_state_dict_pre_hook", "load_state_dict_post_hook")


@pytest.mark.parametrize("kind", OF_A_STATE)
@pytest.mark.parametrize("name,whose", [("0", "it"), ("0.sa.conv1", "its sub-module sa.conv1")])
def test_hooks_of_a_state_dict_keep_a_module(kind, name, whose):
    model = nn.Sequential(reference.CBAM(32))
    getattr(model.get_submodule(name), f"register_{kind}")(lambda *_: None)
    reason = f"{whose} has hooks of its state_dict, which would not run"
    assert replace_cbam(model).skipped["0"] == reason and type(model[0]) is reference.CBAM


def test_a_mask_with_hooks_is_replaced_by_itself():
    model, calls = nn.Sequential(reference.CBAM(32)), []
    model[0].ca.register_forward_hook(lambda module, args, mask: calls.append(mask))
    expected = model(X)
    report = replace_cbam(model)
    assert report.skipped == {"0": "its sub-module ca has hooks, which would not run"}
    assert report.replaced == {"0.ca": "tutorial channel mask", "0.sa": "tutorial spatial mask"}
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(*calls)
