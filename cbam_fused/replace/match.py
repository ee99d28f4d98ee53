"""Which function a foreign module is: every candidate is compared with it on random weights and inputs."""

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import reference, routing
from ..surgery.generators import generator_states, kept_generators
from ..variants.config import STATE
from ..variants.state_dict import PublicNames, rearranged
from .candidates import Proof, candidates
from .layers import Layers
from .operators import foreign_operator, what_the_code_hides

Steps = list[tuple[bool, Tensor]]

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)

# Both sides are float64: a larger difference means another function.
TOLERANCE = 1e-8

# More draws of the weights, each with these inputs: N, H, W and the scale of the values.
DRAWS = 2
INPUTS = (
    *((1, 1, 1, 1e-3), (1, 9, 4, 10.0), (5, 2, 3, 0.03)),
    *((2, 12, 11, 1e3), (2, 12, 11, -1e3), (3, 3, 2, 1e4), (3, 3, 2, -1e4)),
)


def prove(module: nn.Module, layers: Layers) -> tuple[Proof | None, str]:
    """The function of a module, or the reason why it may be none of the known ones.

    Its code is inspected. Then it and every candidate run on the same random weights and inputs. The candidate that is
    equal runs with it on more, and torch.fx lists the operators.
    """
    if hidden := what_the_code_hides(module):
        return None, hidden
    rng = torch.Generator().manual_seed(0)
    C = layers.channels
    distinct = torch.randn(2, C, 7, 6, generator=rng, dtype=torch.float64)
    tied = torch.randn(3, C, 5, 8, generator=rng, dtype=torch.float64).relu()
    tied[:, 0] = 0
    steps = [(training, x) for training in (False, True) for x in (distinct, tied)]
    with torch.enable_grad(), routing.without_demand(), kept_generators():
        before = generator_states()
        try:
            original = random_copy(module, rng)
            running = copy.deepcopy(original)
            expected = [_step(running, training, x, lambda: layers.state(running)) for training, x in steps]
        except Exception as error:  # a foreign module may raise anything
            return None, f"it does not run on a map (N, {C}, H, W): {type(error).__name__}: {error}"
        if generator_states() != before:
            return None, "its forward draws random numbers"
        best = 0
        for proof in candidates(module, layers):
            if not _may_be(proof, original, distinct, expected[0]["output"]):
                continue
            candidate = proof.take(proof.build(proof.switches), original)
            equal = _equal_steps(candidate, proof, steps, expected)
            if equal == len(steps):
                reason = foreign_operator(module) or _more_draws(module, proof, rng)
                reason = reason or _other_half(running, candidate, steps)
                return (None, reason) if reason else (proof, "")
            best = max(best, equal)
    if best < 2:
        return None, "in eval mode it is no known function"
    return None, "in training mode it is no known function, in eval mode it is one"


def _equal_steps(candidate: PublicNames, proof: Proof, steps: Steps, expected: list[dict[str, Tensor]]) -> int:
    """The number of leading steps with equal results."""
    for i, ((training, x), wanted) in enumerate(zip(steps, expected, strict=True)):
        got = _step(candidate, training, x, lambda: _own_state(candidate, proof.mask))
        if not _equal(got, wanted, proof.switches.spatial_order):
            return i
    return len(steps)


def _more_draws(module: nn.Module, proof: Proof, rng: torch.Generator) -> str:
    """Why a module is not this function with other weights and inputs; empty if it is."""
    seen = _Seen()
    for _ in range(DRAWS):
        original = random_copy(module, rng)
        candidate = proof.take(proof.build(proof.switches), original)
        steps = []
        for N, H, W, scale in INPUTS:
            if scale > 0:  # otherwise the negative of the previous input
                noise = torch.randn(N, proof.layers.channels, H, W, generator=rng, dtype=torch.float64)
            x = scale * noise
            modes = (False,) if proof.layers.norm and N * H * W == 1 else (False, True)
            steps += [(training, x) for training in modes]
            seen.add(candidate, proof, x)
        try:
            expected = [_step(original, training, x, lambda: proof.layers.state(original)) for training, x in steps]  # noqa: B023
        except Exception as error:
            return f"it fails on some inputs: {type(error).__name__}: {error}"
        equal = _equal_steps(candidate, proof, steps, expected)
        if equal < len(steps):
            training, x = steps[equal]
            mode = "training" if training else "eval"
            return (
                f"in {mode} mode on a map {tuple(x.shape)} of values up to {x.abs().max():.1g} it is another function"
            )
    return seen.lacking()


class _Seen:
    """Records the signs of each hidden unit of the MLP, and the range of the gates."""

    def __init__(self) -> None:
        self.hidden: list[Tensor] = []
        self.gates: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, candidate: Any, proof: Proof, x: Tensor) -> None:
        candidate.eval()
        ca = candidate if proof.mask and proof.switches.channel else getattr(candidate, "ca", None)
        sa = candidate if proof.mask and not proof.switches.channel else getattr(candidate, "sa", None)
        if ca is not None:
            pooled = torch.cat([x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)])
            self.hidden += [ca.fc1(pooled)] if ca.fc2 is not None else []
            self.gates.setdefault("channel", []).append(ca(x).flatten())
        if sa is not None:
            self.gates.setdefault("spatial", []).append(sa(x).flatten())

    def lacking(self) -> str:
        """What was not reached; empty if everything was."""
        if self.hidden:
            hidden = torch.cat(self.hidden)
            if not bool(((hidden.amin(0) < 0) & (hidden.amax(0) > 0)).all()):
                return "a hidden unit was not seen on both sides of 0"
        for name, values in self.gates.items():
            gate = torch.cat(values)
            if gate.amin() > 0.01 or gate.amax() < 0.99:
                return f"the {name} gate was not seen open and closed"
        return ""


@torch.no_grad()
def _may_be(proof: Proof, original: nn.Module, x: Tensor, wanted: Tensor) -> bool:
    """Whether the output in eval mode is the function's; cheaper than building a module and computing gradients."""
    switches, layers = proof.switches, proof.layers
    state = {n: rearranged(n, t, switches.spatial_order, linear=False) for n, t in layers.state(original).items()}
    w1, b1, w2, b2, ws, bs = (state.get(name) for name in STATE[:6])
    norm = original.get_submodule(layers.norm).eval() if layers.norm else None
    if not proof.mask:
        y = reference.cbam(x, w1, w2, ws, b1, b2, bs, norm=norm, switches=switches)
    elif switches.channel:
        y = reference.channel_gate(x, w1, w2, b1, b2, switches)  # type: ignore[arg-type]  # a channel mask has w1
    else:
        y = reference.spatial_gate(x, ws, bs, norm=norm, switches=switches)  # type: ignore[arg-type]
    return y.shape == wanted.shape and torch.allclose(y, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def takes_one_argument(module: nn.Module) -> bool:
    """Whether forward has exactly one parameter, which is required."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [(p.kind, p.default) for p in parameters] == [
        (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)
    ]


def _other_half(module: nn.Module, candidate: nn.Module, steps: list[tuple[bool, Tensor]]) -> str:
    """Why a caller of the module's ca or sa would get another result from the new one; empty if not."""
    for name in ("ca", "sa"):
        old, new = module._modules.get(name), candidate._modules.get(name)
        if old is None or new is None or type(old).forward is nn.Module.forward:  # calls are errors
            continue
        try:
            same = all(_equal(_step(new, *step, dict), _step(old, *step, dict), "") for step in steps)
        except Exception:  # it does not run on a map
            same = False
        if not same:
            return f"its sub-module {name} is not the same mask as the new {name}"
    return ""


def random_copy(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU, without hooks, with random weights, so equality holds for all weights."""
    hooks: dict[int, Any] = {
        id(m.__dict__[name]): OrderedDict() for m in module.modules() for name in HOOKS if m.__dict__[name]
    }
    result = copy.deepcopy(module, hooks).to("cpu", torch.float64).requires_grad_(True)
    for name, t in result.state_dict().items():
        if t.is_floating_point() and t.numel():
            fan_in = t[0].numel() if t.dim() > 1 else 1
            values = torch.randn(t.shape, generator=rng, dtype=torch.float64) / fan_in**0.5
            t.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return result


def _own_state(module: PublicNames, mask: bool) -> dict[str, Tensor]:
    outer = f"{module.part}." if mask else ""
    return {outer + name: t for name, t in module.state_dict(keep_vars=True).items()}


def _step(module: nn.Module, training: bool, x: Tensor, state: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The output, gradients and buffers of one forward and backward."""
    x = x.clone().requires_grad_()
    module.train(training).zero_grad()
    y = module(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"it returns a {type(y).__name__}")
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weights).sum().backward()
    result = {"output": y.detach(), "input": torch.zeros_like(x) if x.grad is None else x.grad}
    for name, t in state().items():
        result[name] = t.grad.clone() if t.requires_grad and t.grad is not None else t.detach().clone()
    return result


def _equal(got: dict[str, Tensor], wanted: dict[str, Tensor], order: str) -> bool:
    """Equality up to rounding, relative to the largest value of the tensor, and for cancelling sums of the step."""
    if got.keys() != wanted.keys() or got["output"].shape != wanted["output"].shape:
        return False
    pairs = ((got[name], rearranged(name, t, order, linear=False)) for name, t in wanted.items())
    largest = max(1.0, *(_largest(t) for t in wanted.values()))
    return all(
        torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE / 10 * _largest(b) + 1e-12 * largest, equal_nan=True)
        for a, b in pairs
    )


def _largest(t: Tensor) -> float:
    finite = t[t.isfinite()] if t.is_floating_point() else t
    return float(finite.abs().max()) if finite.numel() else 0.0
