"""The operators of cbam_fused/ops/registry.py on the emulated GPU: the same arguments and results, tensors of the CPU.

CBAM_EMULATION_MODE names the mode in which the kernels are built (build.MODES), whatever ``check`` asks for.
"""

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cbam_fused.ops import registry
from cbam_fused.tensors import accumulation_dtype, is_channels_last
from cbam_fused.variants.config import EVEN, NO_CHANNEL, NO_MAX, SINGLE

from . import build, symbols


class Plan(NamedTuple):
    """What an operator is to do; None for a plan lets the launchers choose for an H100."""

    schedule: str  # "staged", "dataflow" or "on_chip"
    cluster: int = 1  # on chip: blocks of an image
    blocks: int = 1  # dataflow: of the launch
    window: int = 1 << 20  # dataflow: bytes that shall stay in L2
    programmatic: bool = True  # staged: a launch may begin before the one ahead of it ends


class EmulationError(Exception):
    """What a kernel did wrong: its kind in a word or two, and what happened where."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


def attempt(module: ModuleType, function: Callable, *arguments):
    """What the function, which is one of the module's, returns. Errors of kernels are raised as EmulationError."""
    try:
        return function(*arguments)
    except module.LaunchError as error:
        kind, message, behind = error.args
        if behind:
            message += f"; {symbols.source_lines(module.__file__, behind)}"
        raise EmulationError(kind, message) from None


class BufferTraffic(NamedTuple):
    """Of one buffer in one launch. What several lanes of a warp access in one request is counted once."""

    read: int  # bytes
    written: int
    distinct: int  # bytes that were accessed at all
    requests: int
    sectors: int  # of 32 bytes

    @property
    def efficiency(self) -> float:
        return (self.read + self.written) / (32 * self.sectors)


class Launch(NamedTuple):
    kernel: str
    shared_bytes: int  # that each block asks for
    buffers: dict[str, BufferTraffic]
    shared_requests: int
    bank_conflicts: int  # cycles beyond those that the bytes need

    @property
    def efficiency(self) -> float:
        """Of all accesses to global memory."""
        moved = sum(b.read + b.written for b in self.buffers.values())
        return moved / (32 * sum(b.sectors for b in self.buffers.values()))


H100 = {
    "multiprocessors": 132,
    "l2_bytes": 50 << 20,
    "shared_per_block": 227 << 10,
    "clusters": True,
}
_DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}


@functools.cache
def module(mode: str) -> ModuleType:
    return build.load("cbam_emulation", mode)


_last: ModuleType | None = None  # of the last call


def traffic() -> list[Launch]:
    """What each launch of the last call, which was made with check, asked of memory."""
    return [
        Launch(
            symbols.function_name(_last.__file__, launch["kernel"]),
            launch["shared_bytes"],
            {name: BufferTraffic(*counts) for name, counts in launch["buffers"].items()},
            launch["shared_requests"],
            launch["bank_conflicts"],
        )
        for launch in _last.traffic()
    ]


class _Call:
    """Tensors in the emulated memory, and the pointers to them in a Problem."""

    def __init__(self, x: Tensor, params: tuple[Tensor | None, ...], switches: int, seed: int, check: bool):
        if x.dtype not in _DTYPES:
            raise ValueError(f"x is {x.dtype}; the kernels take {', '.join(map(str, _DTYPES))}")
        global _last
        _last = self.module = module(os.environ.get("CBAM_EMULATION_MODE") or ("checked" if check else "plain"))
        self.module.clear_traffic()
        self.module.remove_buffers()
        self.module.set_seed(seed)
        self.acc = accumulation_dtype(x.dtype)
        self.layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        self.params = dict(zip(("w1", "w2", "ws", "b1", "b2", "bs"), params, strict=False))
        self.results: dict[str, tuple[Tensor, int]] = {}
        # A single layer is, for the kernels, the second one.
        single = {f"{d}{kind}1": f"{d}{kind}2" for d in ("", "d") for kind in "wb"}
        self.names = single if switches & SINGLE else {}
        self.p = self.module.Problem()
        self.p.dtype = getattr(self.module.Dtype, _DTYPES[x.dtype])
        self.p.channels_last = self.layout is torch.channels_last
        self.p.N, self.p.C, self.p.H, self.p.W = x.shape
        self.p.k = 1
        self.give_image("x", x)
        w1, ws = self.params.get("w1"), self.params.get("ws")
        dense = (torch.contiguous_format, torch.channels_last)
        self.p.ws_channels_last = ws is not None and [ws.is_contiguous(memory_format=f) for f in dense] == [False, True]
        for name, t in self.params.items():
            if name == "ws" and self.p.ws_channels_last:
                self._add(name, t.detach().to(self.acc), writable=False)
            elif t is not None:
                self.give(name, t.to(self.acc))
        self.p.channel = w1 is not None if params else not switches & NO_CHANNEL
        self.p.spatial = ws is not None or not params
        self.p.switches = switches & ~EVEN if switches & NO_MAX and not self.p.spatial else switches
        if w1 is not None:
            self.p.R = w1.shape[0]
            self.p.saved_hidden = 0 if switches & SINGLE else self.p.terms * self.p.R
        if ws is not None:
            self.p.k = ws.shape[3]
        self.like_x = torch.empty_like(x.contiguous(memory_format=self.layout))

    def give(self, name: str, t: Tensor | None) -> None:
        """An argument that is contiguous for the kernels."""
        if t is not None:
            self._add(name, t.detach().contiguous(), writable=False)

    def give_image(self, name: str, t: Tensor | None) -> None:
        """An argument of x's shape, in its layout."""
        if t is not None:
            self._add(name, t.detach().contiguous(memory_format=self.layout), writable=False)

    def give_saved(self, saved: Tensor, index: Tensor | None = None) -> None:
        if not self.params:
            self.p.saved_hidden = saved.shape[1] - self.p.saved_size()
            self.p.R = self.p.saved_hidden // self.p.terms
        assert saved.shape[1] == self.p.saved_size() and (index is None or index.shape[1] == self.p.index_size())
        self.give("saved", saved)
        self.give("index", index)

    def want(self, name: str, t: Tensor) -> Tensor:
        """A result, of the strides of t, which is filled when the launch is over."""
        self.results[name] = (t, self._add(name, t, writable=True))
        return t

    def want_image(self, name: str) -> Tensor:
        return self.want(name, torch.empty_like(self.like_x))

    def want_sums(self, name: str, *shape: int) -> Tensor:
        return self.want(name, torch.empty(shape, dtype=self.acc))

    def want_saved(self) -> tuple[Tensor, Tensor]:
        saved = self.want_sums("saved", self.p.N, self.p.saved_size())
        return saved, self.want("index", torch.empty((self.p.N, self.p.index_size()), dtype=torch.int32))

    def run(self, launcher: str, plan: Plan | None = None, planner: str | None = None) -> None:
        arguments = [self.p]
        if planner is not None:
            arguments.append(self._plan(plan, planner))
            arguments.append(self._scratch("workspace", getattr(self.module, f"{launcher}_workspace")(*arguments)))
        status = attempt(self.module, getattr(self.module, launcher), *arguments)
        if status:
            raise EmulationError("launch", f"{launcher} returned the error {status}")
        for t, address in self.results.values():
            attempt(self.module, self.module.check_written, address)
            self.module.copy_buffer(address, t.nbytes, t.data_ptr())

    def run_backward(self, plan: Plan | None) -> tuple[Tensor | None, ...]:
        """The gradients of the parameters, in their types and strides."""
        for name, t in self.params.items():
            if t is not None:
                as_it_lies = name == "ws" and self.p.ws_channels_last
                self.want(f"d{name}", torch.empty_like(t if as_it_lies else t.contiguous(), dtype=self.acc))
        self.p.partial = self._scratch("partial", self.p.N * self.p.partial_size() * self.acc.itemsize)
        self.run("backward", plan, "plan_backward")
        return tuple(
            None if t is None else torch.empty_like(t).copy_(self.results[f"d{name}"][0])
            for name, t in self.params.items()
        )

    def _plan(self, plan: Plan | None, planner: str):
        if plan is None:
            return getattr(self.module, planner)(self.p, self.module.Device(**H100))
        return self.module.Plan(getattr(self.module.Schedule, plan.schedule), *plan[1:])

    def _scratch(self, name: str, nbytes: int) -> int:
        return self.module.add_buffer(name, nbytes, 0, True)

    def _add(self, name: str, t: Tensor, writable: bool) -> int:
        address = self.module.add_buffer(name, t.nbytes, 0 if writable else t.data_ptr(), writable)
        setattr(self.p, self.names.get(name, name), address)
        return address


def forward(x, w1, w2, ws, b1, b2, bs, residual, relu, switches=0, *, plan=None, seed=0, check=True):
    call = _Call(x, (w1, w2, ws, b1, b2, bs), switches, seed, check)
    call.give_image("residual", residual)
    call.p.relu = relu
    results = call.want_image("y"), *call.want_saved()
    call.run("forward", plan, "plan_forward")
    return results


def gates_forward(x, w1, w2, ws, b1, b2, bs, switches=0, *, plan=None, seed=0, check=True):
    call = _Call(x, (w1, w2, ws, b1, b2, bs), switches, seed, check)
    results = call.want_saved()
    call.run("forward", plan, "plan_forward")
    return results


def apply_gates(x, saved, s, residual, relu, switches=0, *, seed=0, check=True):
    call = _Call(x, (), switches, seed, check)
    call.give_saved(saved)
    call.give("s", s)
    call.give_image("residual", residual)
    call.p.relu = relu
    y = call.want_image("y")
    call.run("apply_gates")
    return y


def gate_grads(dy, x, y, saved, s, switches=0, *, plan=None, seed=0, check=True):
    call = _Call(x, (), switches, seed, check)
    call.give_image("dy", dy)
    call.give_image("y", y)
    call.p.relu = y is not None
    call.give_saved(saved)
    call.give("s", s)
    N, C, H, W = x.shape
    results = call.want_sums("dg", N, C), call.want_sums("ds", N, 1, H, W)
    dresidual = None if y is None else call.want_image("dresidual")
    call.run("gate_grads", plan, "plan_backward")
    return *results, dresidual


def backward(dy, x, y, saved, index, w1, w2, ws, b1, b2, bs, switches=0, *, plan=None, seed=0, check=True):
    call = _Call(x, (w1, w2, ws, b1, b2, bs), switches, seed, check)
    call.give_image("dy", dy)
    call.give_image("y", y)
    call.p.relu = y is not None
    call.give_saved(saved, index)
    dx = call.want_image("dx")
    dresidual = None if y is None else call.want_image("dresidual")
    return dx, *call.run_backward(plan), dresidual


def backward_from_gate_grads(
    dy, s, dg, dlogits, x, saved, index, w1, w2, ws, b1, b2, bs, switches=0, *, plan=None, seed=0, check=True
):
    call = _Call(x, (w1, w2, ws, b1, b2, bs), switches, seed, check)
    call.give_image("dy", dy)
    call.give("s", s)
    call.give("dg", dg)
    call.give("ds", dlogits)
    call.p.given = True
    call.give_saved(saved, index)
    dx = call.want_image("dx")
    return dx, *call.run_backward(plan)


def operators(plan: Plan, seed: int = 0) -> registry.Operators:
    """All of them, by one plan."""
    return registry.Operators(
        **{
            name: functools.partial(globals()[name], seed=seed, **({} if name == "apply_gates" else {"plan": plan}))
            for name in registry.Operators._fields
        }
    )
