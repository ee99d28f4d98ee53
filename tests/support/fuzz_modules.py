"""Random modules of the fuzz tests: variants and switches, both modes, frozen parts, any x."""

from dataclasses import dataclass

import torch
from fuzz import PLACES, SHAPES, Place
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from truth import DTYPES, Problem

from cbam_fused import VARIANTS, reference

SWITCHES = {
    **dict.fromkeys(("bias", "spatial_bias", "norm", "residual"), st.booleans()),
    "ties": st.sampled_from(("first", "even")),
    "gates": st.sampled_from(({}, {}, {"channel": False}, {"spatial": False})),
}


@dataclass(frozen=True)
class ModuleCase:
    """A call of a CBAM, or of its two masks with the caller's products."""

    variant: str
    hidden: int
    switches: dict
    masks: bool
    training: bool
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    float32_parameters: bool
    place: Place
    residual: bool
    relu: bool
    frozen: tuple[bool, ...]
    seed: int

    def build(self, package) -> nn.Module:
        switches = {k: v for k, v in self.switches.items() if k != "gates"} | self.switches.get("gates", {})
        own = VARIANTS[self.variant].switches
        if not own.spatial:  # at least one gate there must be
            switches.pop("channel", None)
        if own.width != "single":
            switches["width"] = self.hidden
        return package.CBAM(self.shape[1], kernel_size=3, variant=self.variant, **switches).train(self.training)

    def function(self, package):
        """A function of x, residual, relu and the state by name."""
        module = self.build(package)
        masks = self.masks and self.dtype in (torch.float32, torch.float64)  # in half types each product is rounded

        def call(x, residual, relu, **state):
            # BatchNorm updates its statistics in place; those of the problem must not change.
            state = {name: t.clone() if "running" in name else t for name, t in state.items() if t is not None}
            return functional_call(
                Caller(module, masks),
                {f"module.{n}": t for n, t in state.items()},
                (x,),
                {"residual": residual, "relu": relu},
            )

        return call

    def by_the_batch(self) -> bool:
        sa = self.build(reference).sa
        return self.training and sa is not None and sa.bn is not None

    def problem(self) -> Problem:
        rng = torch.Generator().manual_seed(self.seed)

        def draw(shape) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        N, C, H, W = self.shape
        if self.by_the_batch() and N * H * W < 2:
            N, H = 2, 2
        x = self.place.put(draw((N, C, H, W)).relu().to(self.dtype))
        half = self.dtype in (torch.float16, torch.bfloat16)
        mixed = half and self.float32_parameters
        params = torch.float32 if mixed else self.dtype
        state = {}
        module = self.build(reference)
        for i, (name, t) in enumerate([*module.named_parameters(), *module.named_buffers()]):
            if t.is_floating_point():
                value = draw(t.shape) / max(1, t[0].numel()) ** 0.5 if t.dim() > 1 else draw(t.shape).abs() + 0.5
                learns = isinstance(t, nn.Parameter) and not self.frozen[i % len(self.frozen)]
                state[name] = value.to(params).requires_grad_(learns)
        residual = draw(x.shape).to(self.dtype) if self.residual else None
        return Problem({"x": x.requires_grad_(), "residual": residual} | state, self.relu, draw(x.shape).to(self.dtype))


class Caller(nn.Module):
    def __init__(self, module: nn.Module, masks: bool):
        super().__init__()
        self.module, self.masks = module, masks

    def forward(self, x: Tensor, *, residual: Tensor | None, relu: bool) -> Tensor:
        if not self.masks:
            return self.module(x, residual=residual, relu=relu)
        for mask in (self.module.ca, self.module.sa):
            x = x if mask is None else mask(x) * x
        return x


MODULE_CASES = st.builds(
    ModuleCase,
    variant=st.sampled_from(tuple(VARIANTS)),
    hidden=st.integers(1, 20),
    switches=st.fixed_dictionaries({}, optional=SWITCHES),
    masks=st.booleans(),
    training=st.booleans(),
    shape=SHAPES,
    dtype=st.sampled_from(DTYPES),
    float32_parameters=st.booleans(),
    place=PLACES,
    residual=st.booleans(),
    relu=st.booleans(),
    frozen=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 2**31),
)
