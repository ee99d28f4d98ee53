"""What else the kernels compute, as pairs of a fused and a plain function of the inputs of a Problem."""

from functools import partial

import torch
from torch import Tensor, nn
from truth import Problem, random_problem

from cbam_fused import functional, reference
from cbam_fused.variants.config import Switches

EVEN = {"switches": reference.TIES["even"]}


def without(problem: Problem, *names: str) -> Problem:
    return Problem(problem.inputs | dict.fromkeys(names), problem.relu, problem.dy)


def channel_only(*args, **options) -> Problem:
    return without(random_problem(*args, **options), "ws", "bs")


def spatial_only(*args, **options) -> Problem:
    return without(random_problem(*args, **options), "w1", "w2", "b1", "b2")


def channel_mask(*args, **options) -> Problem:
    problem = without(channel_only(*args, **options), "residual")
    problem.dy = problem.dy.sum((2, 3), keepdim=True)
    return problem


def spatial_mask(*args, **options) -> Problem:
    problem = without(spatial_only(*args, **options), "residual")
    problem.dy = problem.dy.sum(1, keepdim=True)
    return problem


def _norm(weight: Tensor | None, bias: Tensor | None) -> nn.BatchNorm2d:
    """BatchNorm in training mode with tensors that need not be parameters."""
    norm = nn.BatchNorm2d(1, track_running_stats=False)
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias
    return norm


def with_norm(problem: Problem) -> Problem:
    dtype = problem.inputs["ws"].dtype
    affine = {n: torch.tensor([v], dtype=dtype, requires_grad=True) for n, v in (("weight", 1.4), ("bias", -0.2))}
    # The bias of a convolution before a BatchNorm has no effect: its gradient is rounding errors.
    return Problem(problem.inputs | {"bs": None} | affine, problem.relu, problem.dy)


def _normed(cbam, *, weight, bias, **inputs) -> Tensor:
    return cbam(**inputs, norm=_norm(weight, bias))


def _channel(gate, *, x, w1, w2, b1, b2, **_) -> Tensor:
    return gate(x, w1, w2, b1, b2)


def _spatial(gate, *, x, ws, bs, weight=None, bias=None, **_) -> Tensor:
    return gate(x, ws, bs, norm=None if weight is None else _norm(weight, bias))


def _pair(call, fused, plain):
    """(fused, plain) functions by the way that ties are treated."""
    return {
        "first": (partial(call, fused), partial(call, plain)),
        "even": (partial(call, partial(fused, ties="even")), partial(call, partial(plain, **EVEN))),
    }


def _call(cbam, **inputs) -> Tensor:
    return cbam(**inputs)


# name: (how its problem is drawn, how a function is called with it, fused, plain)
CALLS = {
    "both": (random_problem, _call, functional.cbam, reference.cbam),
    "channel": (channel_only, _call, functional.cbam, reference.cbam),
    "spatial": (spatial_only, _call, functional.cbam, reference.cbam),
    "channel mask": (channel_mask, _channel, functional.channel_gate, reference.channel_gate),
    "spatial mask": (spatial_mask, _spatial, functional.spatial_gate, reference.spatial_gate),
    "both, norm": (
        lambda *args, **options: with_norm(random_problem(*args, **options)),
        *(_normed, functional.cbam, reference.cbam),
    ),
    "spatial, norm": (
        lambda *args, **options: with_norm(spatial_only(*args, **options)),
        *(_normed, functional.cbam, reference.cbam),
    ),
    "spatial mask, norm": (
        lambda *args, **options: with_norm(spatial_mask(*args, **options)),
        *(_spatial, functional.spatial_gate, reference.spatial_gate),
    ),
}
# name: (how its problem is drawn, {ties: (fused, plain)})
FUNCTIONS = {name: (draw, _pair(call, fused, plain)) for name, (draw, call, fused, plain) in CALLS.items()}

_HARD = {"channel_gate": "hard_sigmoid", "spatial_gate": "hard_sigmoid"}
# Every value of every switch that the kernels know, in combinations that share no code where they can.
SWITCHES = {
    "se": {"pools": ("avg",)},
    "se, silu, hard": {"pools": ("avg",), "act": "silu", **_HARD},
    "effective se": {"pools": ("avg",), "width": "single", **_HARD},
    "maximum, gelu": {"pools": ("max",), "act": "gelu"},
    "maximum, single": {"pools": ("max",), "width": "single"},
    "mean of pools": {"combine": "mean", "maps": "mean", "act": "silu"},
    "mean of pools, single": {"combine": "mean", "width": "single"},
    "terms, leaky": {"gate_place": "before_sum", "act": "leaky_relu"},
    "terms, single, hard": {"gate_place": "before_sum", "width": "single", **_HARD},
    "silu": {"act": "silu"},
    "single": {"width": "single"},
    "hard": _HARD,
}
# Names of gates and of switches. The hard sigmoid is the only switch of the spatial gate alone.
CASES = [(g, s) for g in ("both", "channel", "channel mask") for s in SWITCHES]
CASES += [(g, "hard") for g in ("spatial", "spatial mask", "both, norm", "spatial mask, norm")]
CASES += [("both, norm", "mean of pools"), ("both, norm", "se"), ("both, norm", "terms, leaky")]


def switched(name: str, switches: Switches):
    """How the problem of this name is drawn with the switches, and its (fused, plain)."""
    draw, call, *functions = CALLS[name]

    def fitting(shape, *args, **options) -> Problem:
        single = switches.width == "single"
        problem = draw(shape, *args, **options | ({"hidden": shape[1]} if single else {}))
        ws = problem.inputs["ws"]
        if ws is not None and switches.maps == "mean":
            problem.inputs["ws"] = ws.detach()[:, :1].clone().requires_grad_()
        return without(problem, "w2", "b2") if single else problem

    return fitting, tuple(partial(call, partial(function, switches=switches)) for function in functions)
