"""Checks that a model with inserted modules is the old model plus these: runs it and counts calls."""

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..routing import without_demand
from .dry_run import Seen, default_input, observe
from .generators import Undo, generator_states, global_generators
from .preservation import preserved
from .selection import CHILD, HANDLES


class MisplacedError(ValueError):
    """An inserted module is not called once for each call of the module that it follows."""


class Probe(nn.Module):
    """Replaces an inserted module in the check; the identity."""

    def __init__(self, name: str, fused: bool):
        super().__init__()
        self.name, self.fused = name, fused
        self.result: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) != 1 or not isinstance(args[0], Tensor) or kwargs.keys() - {"residual", "relu"}:
            raise MisplacedError(f"CBAM after {self.name!r} must be called with one feature map")
        y, residual = args[0], kwargs.get("residual")
        y = y.view_as(y) if residual is None else y + residual
        self.result = torch.relu(y) if kwargs.get("relu") else y
        return self.result

    def is_the_result(self, module: nn.Module, args: tuple, output: object) -> None:
        """A forward hook of the module that it follows, whose result must be the probe's."""
        if output is not self.result and not self.fused:
            raise MisplacedError(
                f"{self.name!r} calls CBAM among its children but does not return CBAM's result; name another module, "
                "such as the last one inside it"
            )


class Run(NamedTuple):
    """The observations of one forward pass."""

    seen: Seen
    result: Any
    generators: list[object]


def run(model: nn.Module, example: Any, training: bool, start: list[Undo]) -> Run:
    """One forward pass in a mode, with the generators in the states of start; it restores the model."""
    with preserved(model), torch.compiler.set_stance("force_eager"), torch.set_grad_enabled(training), without_demand():
        for step in start:
            step()
        model.train(training)
        seen, result = observe(model, example)
        return Run(seen, result, generator_states(model))


class Example:
    """Inputs for eval and training mode, by training, and the model's runs with them.

    Attributes:
        before: None in training for a model that does not run there, such as one that needs labels.

    Raises:
        ValueError: there is no example_input, and the model rejects noise.
    """

    def __init__(self, model: nn.Module, example_input: Any):
        self.model, self.start = model, global_generators(model)
        if example_input is not None:
            self.inputs = dict.fromkeys((False, True), example_input)
        else:  # two images in training: BatchNorm needs more than one value
            self.inputs = {training: default_input(model, 1 + training) for training in (False, True)}
        try:
            in_eval = self.run(False)
        except Exception as error:
            if example_input is not None:
                raise
            raise ValueError(
                f"example_input must be a tensor, a tuple of arguments or a dictionary: {type(model).__name__} rejects "
                f"noise of shape {tuple(self.inputs[False].shape)} ({type(error).__name__}: {error})"
            ) from error
        self.before: dict[bool, Run | None] = {False: in_eval, True: None}
        with contextlib.suppress(Exception):  # a model may raise anything for an input
            self.before[True] = self.run(True)

    @property
    def seen(self) -> Seen:
        return self.before[False].seen  # type: ignore[union-attr]  # never None in eval mode

    def run(self, training: bool) -> Run:
        return run(self.model, self.inputs[training], training, self.start)


def verify(example: Example, probes: dict[nn.Module, Probe], names: dict[nn.Module, str], argument: str) -> None:
    """Check that each inserted child is called once per call of its module, and that nothing else changes.

    If a module's forward calls the child itself, the hook that calls it is removed.

    Raises:
        ValueError: a check fails.
    """
    try:
        for training, before in example.before.items():
            if before is not None:
                _verify(example, training, before, probes, names)
        after = _run_with_insertions(example, probes)
        for module, probe in probes.items():
            check_count(probe.name, len(example.seen[module]), len(after.seen.get(module.get_submodule(CHILD), ())))
    except MisplacedError as error:
        raise ValueError(f"{argument}: {error}") from error.__cause__


def _verify(
    example: Example, training: bool, before: Run, probes: dict[nn.Module, Probe], names: dict[nn.Module, str]
) -> None:
    after = _run_with_probes(example, training, probes)
    walkers = [m for m in probes if len(after.seen.get(probes[m], ())) == 2 * len(before.seen.get(m, ())) > 0]
    if any([_stop_calling(m) for m in walkers]):
        after = _run_with_probes(example, training, probes)
    check_counts(before, after, probes, names)
    if not same(before, after) and same(after, _run_with_probes(example, training, probes)):  # it is reproducible
        raise MisplacedError(f"with an identity after {_places(probes)} the model returns another result")


def _run_with_probes(example: Example, training: bool, probes: dict[nn.Module, Probe]) -> Run:
    children = {module: module._modules[CHILD] for module in probes}
    hooks = []
    try:
        for module, probe in probes.items():
            module._modules[CHILD] = probe.train(training)
            hooks.append(module.register_forward_hook(probe.is_the_result))
        return _run_with_insertions(example, probes, training)
    finally:
        for hook in hooks:
            hook.remove()
        for module, child in children.items():
            module._modules[CHILD] = child


def _run_with_insertions(example: Example, probes: dict[nn.Module, Probe], training: bool = False) -> Run:
    try:
        return example.run(training)
    except MisplacedError:
        raise
    except Exception as error:
        what = f"with CBAM after {_places(probes)} the model does not run ({type(error).__name__}: {error})"
        raise MisplacedError(what) from error


def call_child(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """The forward hook of a module that does not call its child itself."""
    return getattr(module, CHILD)(output)


def _stop_calling(module: nn.Module) -> bool:
    """Remove that hook; whether there was one."""
    handles = vars(module)[HANDLES]
    for handle in handles:
        if module._forward_hooks.get(handle.id) is call_child:
            handle.remove()
            handles.remove(handle)
            return True
    return False


def _places(probes: dict[nn.Module, Probe]) -> str:
    return ", ".join(repr(probe.name) for probe in probes.values())


def check_counts(before: Run, after: Run, probes: dict[nn.Module, Probe], names: dict[nn.Module, str]) -> None:
    """Check that each probe was called once per call of its module, and all other modules as before.

    Raises:
        MisplacedError: a check fails.
    """
    for module, probe in probes.items():
        calls, of_probe = before.seen.get(module, []), after.seen.get(probe, [])
        check_count(probe.name, len(calls), len(of_probe))
        if [output.shape for output in calls] != [output.shape for output in of_probe]:
            raise MisplacedError(f"CBAM after {probe.name!r} does not get the result of {probe.name!r}")
    for module in before.seen.keys() | (after.seen.keys() - {*probes.values()}):
        calls, now = before.seen.get(module, []), after.seen.get(module, [])
        if calls != now:
            how = "is called with other results" if len(calls) == len(now) else f"is called {len(now)} times"
            what = repr(names[module]) if names.get(module) else type(module).__name__
            raise MisplacedError(
                f"with CBAM after {_places(probes)}, {what} {how} in one forward pass, not {len(calls)}"
            )


def check_count(name: str, of_place: int, of_cbam: int) -> None:
    if of_place != of_cbam:
        raise MisplacedError(
            f"CBAM after {name!r} is called {of_cbam} times in a forward pass, {name!r} {of_place} times; "
            "name another module, such as the last one inside it"
        )


def same(a: Run, b: Run) -> bool:
    """Whether two runs had the same results and left the generators in the same states."""
    return equal(a.result, b.result) and a.generators == b.generators


def equal(a: Any, b: Any) -> bool:
    """Whether two results have the same tensors, up to sqrt(eps) of the largest value.

    Not bitwise: the order of additions in kernels depends on addresses, and on GPUs on chance.
    """
    first, second = ([t.detach() for t in tree_leaves(v) if isinstance(t, Tensor)] for v in (a, b))
    if [(t.shape, t.dtype) for t in first] != [(t.shape, t.dtype) for t in second]:
        return False
    return all(s.device.type == "meta" or _close(s, t) for s, t in zip(first, second, strict=True))


def _close(s: Tensor, t: Tensor) -> bool:
    if not s.is_floating_point() or not s.numel():
        return torch.equal(s, t)
    largest = s[s.isfinite()].abs().max() if s.isfinite().any() else 0.0
    return torch.allclose(s, t, rtol=0, atol=torch.finfo(s.dtype).eps ** 0.5 * float(largest), equal_nan=True)
