"""Random input of the fuzz tests: problems with tensors of any strides, and wrong arguments."""

from dataclasses import dataclass

import torch
from gates import FUNCTIONS, SWITCHES, switched
from hypothesis import strategies as st
from torch import Tensor
from truth import DTYPES, Problem

from cbam_fused.variants.config import Switches

KINDS = ("relu", "normal", "large", "small", "constant")
SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 36), st.integers(1, 9), st.integers(1, 12))


@dataclass(frozen=True)
class Place:
    """The strides of a 4-D tensor: one of the two layouts, permuted dimensions, or any view of a buffer, with gaps,
    repeated elements (strides of 0, or too small) and any offset; its values are then those of the buffer.
    """

    how: str
    order: tuple[int, ...]
    strides: tuple[int, ...]
    huge: int  # the stride of dimensions with one element, where it does not count
    offset: int

    def put(self, t: Tensor) -> Tensor:
        if self.how == "contiguous":
            return t.contiguous()
        if self.how == "channels_last":
            return t.contiguous(memory_format=torch.channels_last)
        if self.how == "permuted":
            return t.permute(self.order).contiguous().permute([self.order.index(d) for d in range(4)])
        strides = [self.huge if n == 1 else s for s, n in zip(self.strides, t.shape, strict=True)]
        last = self.offset + sum(s * (n - 1) for s, n in zip(strides, t.shape, strict=True) if t.numel() and n > 1)
        flat = t.flatten() if t.numel() else t.new_ones(1)
        return flat.repeat(last // flat.numel() + 1).as_strided(t.shape, strides, self.offset)


PLACES = st.builds(
    Place,
    st.sampled_from(("contiguous", "channels_last", "any", "permuted")),
    st.permutations(range(4)).map(tuple),
    st.tuples(*[st.integers(0, 30)] * 4),
    st.sampled_from((0, 1, 7, 2**40, 2**62)),
    st.integers(0, 5),
)


@dataclass(frozen=True)
class Case:
    """A call of the pair of functions of this name in gates.FUNCTIONS, optionally with gates.SWITCHES."""

    name: str
    ties: str
    switches: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    float32_parameters: bool
    options: dict
    relu: bool
    kind: str
    places: dict[str, Place]
    needs_gradient: dict[str, bool]

    def functions(self) -> tuple:
        """(fused, plain)."""
        return self._switched()[1] if self.switches else FUNCTIONS[self.name][1][self.ties]

    def _switched(self) -> tuple:
        return switched(self.name, Switches(ties=self.ties, **SWITCHES[self.switches]))

    def problem(self) -> Problem:
        half = self.dtype in (torch.float16, torch.bfloat16)
        # The norm of that mask computes in the type of its tensors; a half one is as inaccurate as eager is.
        params = torch.float32 if half and (self.float32_parameters or self.name == "spatial mask, norm") else None
        N, C, H, W = self.shape
        if "norm" in self.name and N * H * W < 2:  # there are no statistics of less than two pixels
            N, H = 2, 2
        relu = self.relu and "mask" not in self.name
        draw = self._switched()[0] if self.switches else FUNCTIONS[self.name][0]
        problem = draw((N, C, H, W), self.dtype, params=params, relu=relu, **self.options)
        # What BatchNorm makes of a constant map is rounding errors times 1 / sqrt(eps).
        if self.kind != "relu" and (self.kind, "norm" in self.name) != ("constant", True):
            x, small = problem.inputs["x"].detach(), torch.finfo(self.dtype).tiny ** 0.5
            large = (
                20 if self.dtype == torch.float16 else 200
            )  # of 200, eager's BatchNorm makes infinite sums in float16
            scale = {"normal": 1, "large": large, "small": small, "constant": 0}[self.kind]
            rng = torch.Generator().manual_seed(self.options["seed"])
            values = torch.randn(x.shape, generator=rng, dtype=torch.float64)
            x.copy_(values * scale + (self.kind == "constant"))
        for key, t in problem.inputs.items():
            if t is not None:
                placed = self.places[key].put(t.detach()) if key in self.places else t.detach()
                problem.inputs[key] = placed.requires_grad_(self.needs_gradient.get(key, True))
        problem.dy = self.places["dy"].put(problem.dy)
        return problem


CASES = st.builds(
    Case,
    name=st.sampled_from(tuple(FUNCTIONS)),
    ties=st.sampled_from(("first", "even")),
    switches=st.sampled_from(("", *SWITCHES)),
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    float32_parameters=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "hidden": st.integers(1, 20),
            "kernel_size": st.sampled_from((1, 3, 5, 7, 9, 13)),
            "biases": st.booleans(),
            "residual": st.booleans(),
            "seed": st.integers(0, 2**31),
        }
    ),
    relu=st.booleans(),
    kind=st.sampled_from(KINDS),
    places=st.fixed_dictionaries({name: PLACES for name in ("x", "ws", "residual", "dy")}),
    needs_gradient=st.fixed_dictionaries({n: st.booleans() for n in ("x", "w1", "w2", "ws", "b1", "b2", "bs")}),
)

HOW = ("rank", "size", "empty", "dtype", "device", "layout", "list", "array", "text", "number", "type")
WRONG_DTYPES = (torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, *DTYPES)
WRONG = st.tuples(st.sampled_from(HOW), st.integers(0, 3), st.sampled_from(WRONG_DTYPES))


def wrong(name: str, t: Tensor, how: str, dim: int, dtype: torch.dtype) -> object:
    """An invalid value for the argument of this name instead of t."""
    dim %= t.dim()
    if how == "rank":
        return t[0] if t.dim() == 1 else t[None, None]  # of the weights, (R, C) and (R, C, 1, 1) are both right
    if how == "size" and name != "x":
        return torch.cat([t, t], dim)
    if how == "empty" and (name, dim) != ("x", 0):
        return t.narrow(dim, 0, 0)
    if how == "dtype":
        half = t.dtype in (torch.float16, torch.bfloat16)
        also = DTYPES if name == "x" else (torch.float32,) if half and name != "residual" else ()
        return t.to(torch.int16 if dtype in (t.dtype, *also) else dtype)
    if how == "device" and name != "x":
        return t.to("meta")
    if how == "layout":
        return t.to_sparse()
    return {"list": t.tolist(), "array": t.float().numpy(), "text": "cpu", "number": 1.5}.get(how, Tensor)
