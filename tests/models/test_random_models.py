"""insert_cbam and remove_cbam on random networks: they change nothing but CBAM.

The truth comes from forward hooks on the same network, each with a copy of the CBAM, after the named place, or after
the last BatchNorm of a block for "in_block". An insertion may be refused; the network is then unchanged.
"""

import copy
import functools
import random
import re

import numpy as np
import pytest
import torch
from anatomy import anatomy, generators, set_generators
from random_models import Checkpointed, draw, draw_input
from torch import nn
from torch.utils._pytree import tree_leaves

from cbam_fused import CBAM, insert_cbam, reference, remove_cbam

MODELS, A_TEST = 150, 10
FACTORIES = (CBAM, functools.partial(CBAM, variant="official"), reference.CBAM, functools.partial(CBAM, ties="even"))


def places(seed: int, model: nn.Module) -> dict:
    """Places for insert_cbam, of any kind."""
    choice = random.Random(seed)
    layers = [n for n, _ in model.named_children() if n.startswith("layer")]
    blocks = [n for n, m in model.named_modules() if re.fullmatch(r"layer\d\.\w+", n)]
    inner = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.ReLU)]
    return choice.choice(
        [
            {"where": "in_block"},
            {"where": "in_block"},
            {"where": "each_layer"},
            {"after": choice.sample(layers, choice.randint(1, len(layers)))},
            {"after": choice.sample(blocks, 1)},
            {"after": choice.sample(inner, 2)},
            {"where": re.compile(r"stem|layer\d")},
            {"where": lambda name, module: name in blocks},
        ]
    )


def run(model: nn.Module, modules: dict[str, nn.Module], seed: int, training: bool, draw_number: int) -> dict:
    """The results of one forward and backward; gradients by parameter names, those of CBAMs by their place."""
    model = copy.copy(model)
    rest = [m for m in model.modules() if m not in modules.values()]
    for module in (*rest, *(inner for m in modules.values() for inner in m.modules())):
        module.training = training
    parameters = dict(model.named_parameters())
    inside = {id(p) for m in modules.values() for p in m.parameters()}
    own = {n: p for n, p in parameters.items() if id(p) not in inside}
    own |= {f"{place}: {n}": p for place, m in modules.items() for n, p in m.named_parameters()}
    random.seed(draw_number)
    np.random.seed(draw_number)
    torch.manual_seed(draw_number)
    x = draw_input(seed)
    images = [t.requires_grad_() for t in tree_leaves(x)][:1]
    arguments, options = (x, {}) if isinstance(x, tuple) else ((x,), {})
    if isinstance(x, dict) and "x" in x:
        arguments, options = (), x
    result = tree_leaves(model(*arguments, **options))
    states = generators()
    loss = sum(t.square().mean() for t in result)
    learned = [p for p in own.values() if p.requires_grad]
    grads = torch.autograd.grad(loss, [*images, *learned], allow_unused=True)
    buffers = {n: b.clone() for n, b in model.named_buffers() if not re.search(r"(^|\.)cbam\.", n)}
    buffers |= {f"{place}: {n}": b.clone() for place, m in modules.items() for n, b in m.named_buffers()}
    return {
        "result": [t.detach() for t in result],
        "generators": states,
        "gradients": dict(zip(["x", *(n for n, p in own.items() if p.requires_grad)], grads, strict=True)),
        "buffers": dict(sorted(buffers.items())),
    }


def truth(seed: int, inserted: dict[str, nn.Module], in_block: bool) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The network without insert_cbam, and the copies of CBAM that its hooks call."""
    plain = draw(seed)
    copies = {}
    for name, module in inserted.items():
        place = name.removesuffix(".cbam")
        copies[place] = copied = copy.deepcopy(module)
        target = plain.get_submodule(place)
        if in_block:
            target = target.bn3 if hasattr(target, "bn3") else target.bn2
        target.register_forward_hook(lambda m, args, y, copied=copied: copied(y))
    return plain, copies


def calls(model: nn.Module, modules: dict[str, nn.Module], seed: int, training: bool) -> dict[str, int]:
    counts = dict.fromkeys(modules, 0)

    def count(name: str):
        def hook(*_) -> None:
            counts[name] += 1

        return hook

    hooks = [m.register_forward_hook(count(n)) for n, m in modules.items()]
    with torch.no_grad():
        run_forward(model, seed, training)
    for hook in hooks:
        hook.remove()
    return counts


def run_forward(model: nn.Module, seed: int, training: bool) -> None:
    model.train(training)
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed)
    x = draw_input(seed)
    if isinstance(x, dict) and "x" in x:
        model(**x)
    else:
        model(*x) if isinstance(x, tuple) else model(x)


def assert_same_runs(a: dict, b: dict, exactly: bool, keys=("result", "gradients", "buffers")) -> None:
    assert a["generators"] == b["generators"]
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-8, "atol": 1e-10}
    for key in keys:
        torch.testing.assert_close(a[key], b[key], **tolerance)


def check(seed: int) -> bool:
    """Whether the insertion was not refused."""
    model = draw(seed)
    arguments = places(seed, model)
    factory = FACTORIES[seed % len(FACTORIES)]
    before, states = anatomy(model), generators()
    example = draw_input(seed + 5)  # of the same kind
    options = {"factory": factory, "example_input": example, "reduction": 4, "kernel_size": 3}
    try:
        inserted = insert_cbam(model, **arguments, **options)
    except ValueError as error:
        assert anatomy(model) == before and generators() == states, "nothing stays"
        assert re.search(r"'(layer\d|stem)|'in_block' does not fit Network|at least 1 hidden unit", str(error)), (
            "the module is named"
        )
        return False
    in_block = arguments.get("where") == "in_block"
    after = anatomy(model)
    for name in before.keys() - {n.removesuffix(".cbam") for n in inserted}:
        assert after[name] == before[name], "all else is as it was"
    assert all(after[n][0].training == before[n.removesuffix(".cbam")][0].training for n in inserted)
    modules = {n.removesuffix(".cbam"): m for n, m in inserted.items()}

    checkpointed = any(isinstance(m, Checkpointed) for m in model.modules())
    plain, copies = truth(seed, inserted, in_block)
    for training in (False, True):
        for number in range(3):
            ours = run(model, modules, seed, training, number)
            theirs = run(plain, copies, seed, training, number)
            # In the backward a checkpoint runs its part again until it has the needed tensors, so BatchNorm may count
            # once or twice.
            keys = ("result", "gradients", "buffers") if not checkpointed else ("result", "gradients")
            assert_same_runs(ours, theirs, exactly=False, keys=keys)
    model, plain = draw(seed), draw(seed)
    modules = {n.removesuffix(".cbam"): m for n, m in insert_cbam(model, **arguments, **options).items()}
    for training in (False, True, True):
        expected = calls(plain, {n: plain.get_submodule(n) for n in modules}, seed, training)
        assert calls(model, modules, seed, training) == expected, "once for each call of the module that it follows"

    model = draw(seed)
    before, states = anatomy(model), generators()
    insert_cbam(model, **arguments, **options)
    set_generators(states)
    assert sorted(remove_cbam(model)) == sorted(inserted)
    assert anatomy(model) == before and generators() == states, "removal leaves nothing behind"
    plain = draw(seed)
    for training in (False, True):
        for number in range(2):
            assert_same_runs(
                run(model, {}, seed, training, number), run(plain, {}, seed, training, number), exactly=True
            )
    return True


@pytest.mark.parametrize("first", range(0, MODELS, A_TEST))
def test_outputs_gradients_generators_and_calls(first):
    inserted = sum(check(seed) for seed in range(first, first + A_TEST))
    assert 2 <= inserted < A_TEST, "some are refused, but not all"
