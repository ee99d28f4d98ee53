"""The structure and state of a model, and of the random generators, for comparison."""

import random

import numpy as np
import torch
from torch import nn


def generators() -> list[object]:
    state = np.random.get_state(legacy=False)["state"]
    return [random.getstate(), (state["key"].tolist(), state["pos"]), torch.get_rng_state().tolist()]


def set_generators(states: list[object]) -> None:
    random.setstate(states[0])
    np.random.set_state(("MT19937", np.array(states[1][0], dtype=np.uint32), states[1][1]))
    torch.set_rng_state(torch.tensor(states[2], dtype=torch.uint8))


def anatomy(model: nn.Module) -> dict:
    """The attributes and hooks of each module."""
    found = {}
    for name, module in model.named_modules():
        attributes = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        if isinstance(attributes.get("random"), random.Random):
            attributes["random"] = attributes["random"].getstate()
        hooks = {k: [*v.values()] for k, v in vars(module).items() if k.endswith("_hooks") and v}
        children, tensors = list(module._modules.items()), (*module._parameters.items(), *module._buffers.items())
        flags = {k: p.requires_grad for k, p in module._parameters.items() if p is not None}
        held = [(k, None if t is None else (id(t), t.detach().tolist())) for k, t in tensors]
        found[name] = (module, type(module), attributes, hooks, children, held, flags, list(vars(module)))
    return found
