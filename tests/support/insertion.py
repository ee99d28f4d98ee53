"""A small network, its input, and what an insertion does to it."""

import pytest
import torch
from anatomy import anatomy, generators
from torch import nn

from cbam_fused import insert_cbam


def small(side: int = 12) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def network(*blocks: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks)


def assert_refused(model: nn.Module, message: str, *args, **options) -> None:
    before, states = anatomy(model), generators()
    with pytest.raises(ValueError, match=message):
        insert_cbam(model, *args, **{"example_input": small(), **options})
    assert anatomy(model) == before and generators() == states


def count(model: nn.Module, inserted: dict, x, training: bool) -> list[int]:
    calls = dict.fromkeys(inserted, 0)

    def hook(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    hooks = [m.register_forward_hook(hook(n)) for n, m in inserted.items()]
    model.train(training)(x)
    for h in hooks:
        h.remove()
    return [*calls.values()]
