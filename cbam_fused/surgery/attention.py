"""The gates of every CBAM of a model, for one batch."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from .. import reference
from ..keywords import names_keywords
from .diagnosis import gate_problems
from .dry_run import call, evaluating
from .selection import find_cbams


class AttentionMaps(NamedTuple):
    """The gates of a CBAM; None for an absent gate.

    Values are in [0, 1]; with gate_place="before_sum" the channel gate reaches the number of pools. ``problems`` lists
    what is wrong with the gates: constant over channels, positions or images, saturated.
    """

    channel: Tensor | None  # (N, C, 1, 1)
    spatial: Tensor | None  # (N, 1, H, W)

    @property
    def problems(self) -> list[str]:
        """A sentence for each fault, with the remedy. Differences over images need at least two images."""
        return gate_problems(*self)


@names_keywords
def attention_maps(model: nn.Module, x: Any) -> dict[str, AttentionMaps]:
    """The gates of each CBAM for the input x, in eval mode and without gradients; the model does not change.

    Args:
        model: a model with CBAMs, inserted or its own.
        x: the model's input: a tensor, a tuple of arguments, or a dictionary of keyword arguments.

    Returns:
        By the full name of the module, in the order of the forward pass. A CBAM that is called several times has
        the gates of its last call; a CBAM that is not called is left out. ``maps[name].problems`` lists what is wrong
        with them.

    Raises:
        ValueError: the model has no CBAM.
        TypeError: a CBAM of another factory without ``gates(x)``.
    """
    cbams = find_cbams(model)
    if not cbams:
        raise ValueError(f"attention_maps: {type(model).__name__} has no CBAM; insert one with insert_cbam")
    for name, module in cbams.items():
        if not _has_gates(module):
            raise TypeError(f"{name}: {type(module).__name__} must have gates(x) -> (channel gate, spatial gate)")
    maps: dict[str, AttentionMaps] = {}

    def record(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            maps.pop(name, None)
            maps[name] = AttentionMaps(*gates_of(module, args[0] if args else kwargs["x"]))

        return hook

    hooks = [module.register_forward_pre_hook(record(name), with_kwargs=True) for name, module in cbams.items()]
    try:
        with evaluating(model):
            call(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def gates_of(module: nn.Module, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The channel gate of a CBAM for x, and its spatial gate for x times the channel gate."""
    if not _has_gates(module):
        raise TypeError(f"{type(module).__name__} must have gates(x) -> (channel gate, spatial gate)")
    gates: Any = getattr(module, "gates", None)
    if gates is not None:
        return gates(x)
    assert isinstance(module, reference.CBAM)
    channel = None if module.ca is None else module.ca(x)
    if module.sa is None:
        return channel, None
    return channel, module.sa(x if channel is None else x * channel)


def _has_gates(module: nn.Module) -> bool:
    return isinstance(module, reference.CBAM) or hasattr(module, "gates")
