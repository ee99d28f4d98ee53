"""Networks with inserted CBAMs and frozen parts, copied, pickled, compiled and replicated."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from backbones import image, same_state, small_resnet, small_swin
from torch import nn
from torch.utils.hooks import RemovableHandle

from cbam_fused.surgery import attention_maps, freeze_except, insert_cbam, remove_cbam, unfreeze

PLACES = {
    "layers": (small_resnet, "each_layer"),
    "hooks": (small_resnet, "stem_last"),
    "in_block": (small_resnet, "in_block"),
    "NHWC": (small_swin, "each_layer"),
}


def changed(name: str) -> tuple[nn.Module, nn.Module]:
    """A network with inserted CBAMs and the rest frozen, and the original network."""
    build, where = PLACES[name]
    model = build()
    insert_cbam(model, where=where, example_input=image(1))
    freeze_except(model)
    return model.eval(), build().eval()


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_a_copy_is_independent_and_complete(name, copied):
    model, plain = changed(name)
    x = image()
    with torch.no_grad():
        y = model(x)
        copied = copied(model)
        assert torch.equal(copied(x), y) and same_state(copied.state_dict(), model.state_dict())
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(model(x), y), "the copy has its own parameters"
        copied.load_state_dict(model.state_dict())
        attention_maps(copied, x)
        assert torch.equal(copied(x), y), "hooks of attention_maps displace none of those in the copy"
        unfreeze(copied)
        assert all(p.requires_grad for p in copied.parameters())
        assert not all(p.requires_grad for p in model.parameters())
        remove_cbam(copied)
        assert torch.equal(copied(x), plain(x)) and torch.equal(model(x), y)
    assert {type(m) for m in copied.modules()} == {type(m) for m in plain.modules()}


def test_a_saved_model_loads_in_another_process(tmp_path):
    """Its classes are created at run time, so the other process must create them again."""
    model, _ = changed("in_block")
    x = image()
    with torch.no_grad():
        torch.save((model, x, model(x)), tmp_path / "model.pt")
    script = """
import sys, torch
from cbam_fused.surgery import remove_cbam, unfreeze
model, x, y = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.testing.assert_close(model.train().eval()(x), y)
    unfreeze(model)
    assert len(remove_cbam(model)) == 4
    assert not torch.equal(model(x), y)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "model.pt")], check=True)


def test_numbers_of_hooks_are_not_given_away_twice(monkeypatch):
    """A new process counts hook ids from 0; a hook with the id of a loaded one would replace it."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    model, _ = changed("NHWC")
    file = pickle.dumps(model)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = pickle.loads(file)
    taken = [number for m in loaded.modules() for number in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert taken and RemovableHandle.next_id > max(taken)


@pytest.mark.parametrize("name", PLACES)
def test_compiles_as_one_graph(name):
    """Tracing only: backends see the same operators as in any other network."""
    model, _ = changed(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = image()
    for mode in (False, True):
        model.train(mode)
        torch.manual_seed(0)
        y = model(x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(x), y)


@pytest.mark.parametrize("name", PLACES)
def test_replicas_use_their_own_parameters(name):
    """DataParallel's replication of every module, without a GPU: a shallow copy with its own children."""
    model, _ = changed(name)

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        replica._modules = {n: replicate(m) for n, m in module.named_children()}
        for n, p in module._parameters.items():
            setattr(replica, n, None if p is None else p * 0)
        return replica

    replica = replicate(model)
    cbams = [m for n, m in replica.named_modules() if n.endswith("cbam")]
    called = []
    for module in cbams:
        module.register_forward_pre_hook(lambda m, args: called.append(m))
    with torch.no_grad():
        y = replica(image())
        assert called == cbams
        assert torch.equal(y, torch.zeros(2, 5)) and not torch.equal(model(image()), y)
