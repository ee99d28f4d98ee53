"""Which function a foreign module is: candidates by the shapes of its layers, proved by its numbers."""

import copy
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import modules, reference, routing
from ..variants.config import ALLOWED, STATE, Switches
from ..variants.state_dict import HIDDEN, PublicNames, rearranged
from ..variants.table import VARIANTS, Variant
from . import generators
from .operators import foreign_operator, what_the_code_hides

Steps = list[tuple[bool, Tensor]]

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)

# float64 on both sides: what differs by more is another function.
TOLERANCE = 1e-8

# More draws of the weights, each with these inputs: N, H, W and the scale of the values.
DRAWS = 2
INPUTS = (
    *((1, 1, 1, 1e-3), (1, 9, 4, 10.0), (5, 2, 3, 0.03)),
    *((2, 12, 11, 1e3), (2, 12, 11, -1e3), (3, 3, 2, 1e4), (3, 3, 2, -1e4)),
)


@dataclass(frozen=True)
class Layers:
    """The names of a module's layers that have parameters, by their role; empty if it has none in that role."""

    fc1: str
    fc2: str
    conv: str
    norm: str
    channels: int
    kernel_size: int
    switches: Switches

    @classmethod
    def of(cls, module: nn.Module) -> "Layers | None":
        """None if the layers are not those of a CBAM or of one of its masks."""
        mlp: list[str] = []
        conv: list[str] = []
        norm: list[str] = []
        for name, layer in module.named_modules():
            if "parametrizations" in layer._modules:  # asking for its weight may change it, as in spectral_norm
                return None
            if not layer._parameters and not layer._buffers:
                continue
            shape: tuple[int, ...] = layer.weight.shape if isinstance(layer, nn.Linear | nn.Conv2d) else ()
            if len(shape) == 4 and shape[0] == 1 and shape[1] in (1, 2) and 1 < shape[2] == shape[3] and shape[3] % 2:
                conv.append(name)
            elif len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1)):
                mlp.append(name)
            elif isinstance(layer, nn.BatchNorm2d) and layer.num_features == 1 and len([*layer.state_dict()]) == 5:
                norm.append(name)
            else:
                return None
            if not name or len(mlp) > 2 or len(conv) > 1 or len(norm) > len(conv):
                return None
        if not mlp and not conv:
            return None
        found: list[Any] = [module.get_submodule(name) for name in (*mlp, *conv)]
        shapes = [layer.weight.shape[:2] for layer in found[: len(mlp)]]
        biases = [layer.bias is not None for layer in found]
        single = len(mlp) == 1 and shapes[0][0] == shapes[0][1]
        if mlp and not single and (len(mlp) != 2 or shapes[0] != shapes[1][::-1] or biases[0] != biases[1]):
            return None
        kernel = found[-1].weight.shape if conv else (1, 2, 7, 7)
        switches = Switches(
            channel=bool(mlp),
            spatial=bool(conv),
            width="single" if single else int(shapes[0][0]) if mlp else 1,
            bias=bool(mlp) and biases[0],
            maps="both" if kernel[1] == 2 else "mean",
            spatial_bias=bool(conv) and biases[-1],
            norm=bool(norm),
        )
        fc1, fc2, *_ = (*mlp, "", "")
        channels = shapes[0][1] if mlp else 5  # any number will do for the spatial mask
        return cls(fc1, fc2, "".join(conv), "".join(norm), channels, kernel[2], switches)

    def state(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's state under our names, in its own shapes and order."""
        names = {"ca.fc1": self.fc1, "ca.fc2": self.fc2, "sa.conv1": self.conv, "sa.bn": self.norm}
        result = {}
        for own in STATE:
            layer, _, leaf = own.rpartition(".")
            tensor = getattr(module.get_submodule(names[layer]), leaf, None) if names[layer] else None
            if tensor is not None:
                result[own] = tensor
        return result


@dataclass(frozen=True)
class Proof:
    """A module is this function: a map, or one of the two masks, with these switches."""

    layers: Layers
    switches: Switches
    mask: bool
    row: Variant

    def build(self, switches: Switches) -> PublicNames:
        """A fused module of this function."""
        values = {f.name: getattr(switches, f.name) for f in fields(Switches)}
        if self.row.name == "tutorial":
            del values["spatial_order"]
        arguments = {"variant": self.row.name, **values}
        if not self.mask:
            return modules.CBAM(self.layers.channels, 1, self.layers.kernel_size, **arguments)
        if switches.channel:
            return modules.ChannelAttention(self.layers.channels, 1, **arguments)
        return modules.SpatialAttention(self.layers.kernel_size, **arguments)

    def take(self, module: PublicNames, original: nn.Module) -> PublicNames:
        """The state of the original, and what its BatchNorm has besides."""
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in self.layers.state(original).items():
            target = own[name.partition(".")[2] if self.mask else name]
            target.data = rearranged(name, tensor.detach(), self.switches.spatial_order, linear=False).clone()
            target.requires_grad_(tensor.requires_grad)
        if self.layers.norm:
            norm: Any = module.get_submodule("bn" if self.mask else "sa.bn")
            old: Any = original.get_submodule(self.layers.norm)
            norm.eps, norm.momentum = old.eps, old.momentum
        return module

    def description(self) -> str:
        used = [*HIDDEN["ca"]] * self.switches.channel + [*HIDDEN["sa"]] * self.switches.spatial + ["residual"]
        used += ["bias", "spatial_bias", "norm"]
        values = [
            f"{f}={getattr(self.switches, f)!r}"
            for f in used
            if getattr(self.switches, f) != getattr(self.row.switches, f)
        ]
        part = ("channel mask" if self.switches.channel else "spatial mask") if self.mask else ""
        return " ".join(filter(None, (self.row.name, part, f"with {', '.join(values)}" if values else "")))


def _functions(module: nn.Module, layers: Layers) -> Iterator[Proof]:
    """What the module may be: the functions in the table, with either order of the maps, with and without residual."""
    whole = layers.switches.channel and layers.switches.spatial
    seen = set()
    hidden = [*HIDDEN["ca"]] * layers.switches.channel + [*HIDDEN["sa"]] * layers.switches.spatial + ["ties"]
    for row, order, residual, mask in itertools.product(
        VARIANTS.values(), ALLOWED["spatial_order"], (False, True), (False,) if whole else (False, True)
    ):
        for chosen in _chosen(row, hidden):
            values = {f: getattr(row.switches, f) for f in hidden} | chosen | {"residual": residual}
            if layers.switches.spatial:
                values["spatial_order"] = order
            switches = replace(layers.switches, **values)
            if (switches, mask) in seen or (mask and residual):
                continue
            seen.add((switches, mask))
            yield Proof(layers, switches, mask, _row(module, switches, mask))


def _chosen(row: Variant, hidden: list[str]) -> Iterator[dict[str, str]]:
    """What a row's users may have chosen of these switches, its own values first."""
    names = [name for name in row.choices if name in hidden and name != "pools"]
    values = [sorted(ALLOWED[name], key=lambda v: v != getattr(row.switches, name)) for name in names]
    return (dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values))


def _row(module: nn.Module, switches: Switches, mask: bool) -> Variant:
    """The variant that has the module's names, of several the one most like it; the tutorial if there is none."""
    keys = {*module.state_dict()}

    def has_the_names(row: Variant) -> bool:
        halves = [half for half, there in (("ca", switches.channel), ("sa", switches.spatial)) if there]
        return keys <= {name for half in halves for name in row.names(half, mask).values()}

    def differences(row: Variant) -> int:
        return sum(getattr(row.switches, f.name) != getattr(switches, f.name) for f in fields(Switches))

    return min(filter(has_the_names, VARIANTS.values()), key=differences, default=VARIANTS["tutorial"])


def prove(module: nn.Module, layers: Layers) -> tuple[Proof | None, str]:
    """Which function a module is, or why it may be none that is known.

    Its code is inspected. Then it and every candidate run on the same random weights and inputs. The one candidate
    that is equal runs with it on more, and torch.fx lists the operators.
    """
    if hidden := what_the_code_hides(module):
        return None, hidden
    rng = torch.Generator().manual_seed(0)
    C = layers.channels
    distinct = torch.randn(2, C, 7, 6, generator=rng, dtype=torch.float64)
    tied = torch.randn(3, C, 5, 8, generator=rng, dtype=torch.float64).relu()
    tied[:, 0] = 0
    steps = [(training, x) for training in (False, True) for x in (distinct, tied)]
    with torch.enable_grad(), routing.without_demand(), generators.kept():
        before = generators.states()
        try:
            original = random_copy(module, rng)
            running = copy.deepcopy(original)
            expected = [_step(running, training, x, lambda: layers.state(running)) for training, x in steps]
        except Exception as error:  # whatever a foreign module does with such an input
            return None, f"it does not take a map (N, {C}, H, W) alone: {type(error).__name__}: {error}"
        if generators.states() != before:
            return None, "its forward draws random numbers"
        best = 0
        for proof in _functions(module, layers):
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
        return None, "in eval mode it is none of the known functions"
    return None, "in training mode it is none of the known functions, in eval mode it is one"


def _equal_steps(candidate: PublicNames, proof: Proof, steps: Steps, expected: list[dict[str, Tensor]]) -> int:
    """How many of the steps give the same, before one does not."""
    for i, ((training, x), wanted) in enumerate(zip(steps, expected, strict=True)):
        got = _step(candidate, training, x, lambda: _own_state(candidate, proof.mask))
        if not _equal(got, wanted, proof.switches.spatial_order):
            return i
    return len(steps)


def _more_draws(module: nn.Module, proof: Proof, rng: torch.Generator) -> str:
    """Why a module is not this function with other weights, on larger and smaller inputs; empty if it is."""
    seen = _Seen()
    for _ in range(DRAWS):
        original = random_copy(module, rng)
        candidate = proof.take(proof.build(proof.switches), original)
        steps = []
        for N, H, W, scale in INPUTS:
            if scale > 0:  # else it is the negative of the one before
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
    """Which sides of 0 each hidden unit of the MLP was on, and how far the gates were open and closed."""

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
        """What was not seen; empty if all was."""
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
    """Whether the output in eval mode is that of the function, which costs less than a module and its gradients."""
    switches, layers = proof.switches, proof.layers
    state = {n: rearranged(n, t, switches.spatial_order, linear=False) for n, t in layers.state(original).items()}
    w1, b1, w2, b2, ws, bs = (state.get(name) for name in STATE[:6])
    norm = original.get_submodule(layers.norm).eval() if layers.norm else None
    if not proof.mask:
        y = reference.cbam(x, w1, w2, ws, b1, b2, bs, norm=norm, switches=switches)
    elif switches.channel:
        y = reference.channel_gate(x, w1, w2, b1, b2, switches)  # type: ignore[arg-type]  # such a mask has w1
    else:
        y = reference.spatial_gate(x, ws, bs, norm=norm, switches=switches)  # type: ignore[arg-type]
    return y.shape == wanted.shape and torch.allclose(y, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def takes_one_argument(module: nn.Module) -> bool:
    """Whether forward has one parameter, which must be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [(p.kind, p.default) for p in parameters] == [
        (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)
    ]


def _other_half(module: nn.Module, candidate: nn.Module, steps: list[tuple[bool, Tensor]]) -> str:
    """Why a caller of the module's ca or sa would get something else from the new one; empty if none would."""
    for name in ("ca", "sa"):
        old, new = module._modules.get(name), candidate._modules.get(name)
        if old is None or new is None or type(old).forward is nn.Module.forward:  # calls are errors
            continue
        try:
            same = all(_equal(_step(new, *step, dict), _step(old, *step, dict), "") for step in steps)
        except Exception:  # it takes no map alone
            same = False
        if not same:
            return f"its sub-module {name} is not the mask that the new one of this name is"
    return ""


def random_copy(module: nn.Module, rng: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU, without hooks, with random state: equality is that of functions, not of weights."""
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
    """Output, gradients and buffers of one forward and backward."""
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
    """Up to rounding, relative to the largest value of a tensor; sums that cancel have that of the whole step."""
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
