"""The cases: the grid of feature maps, and the implementations of CBAM for each."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from truth import Problem, random_problem

import cbam_fused
from cbam_fused import reference

# torch.compile silently falls back to eager after 8 graphs of a function; a network has more sizes.
torch._dynamo.config.recompile_limit = 64
torch._dynamo.config.fail_on_recompile_limit_hit = True

# ResNet-18's and ResNet-50's stages at 224 px, the stem, and single images.
GRID = [
    (16, 64, 56, 56),
    (16, 128, 28, 28),
    (16, 256, 14, 14),
    (16, 512, 7, 7),
    (8, 256, 56, 56),
    (8, 512, 28, 28),
    (8, 1024, 14, 14),
    (8, 2048, 7, 7),
    (32, 64, 112, 112),
    (1, 64, 56, 56),
    (1, 512, 7, 7),
]
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
REDUCTION = 16


@dataclass(frozen=True)
class Case:
    """A feature map, the input of CBAM."""

    device: str
    shape: tuple[int, int, int, int]
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout} {self.device}"

    def problem(self) -> Problem:
        """ReLU'd random data on the CPU, and the weights of the module."""
        hidden = max(1, self.shape[1] // REDUCTION)
        return random_problem(self.shape, DTYPES[self.dtype], LAYOUTS[self.layout], hidden=hidden)


def grid(quick: bool) -> list[Case]:
    if quick:
        kinds = [("float32", "nchw"), ("bfloat16", "nhwc")]
        return [Case(d, s, *kind) for d in DEVICES for s in [(16, 256, 14, 14), (1, 512, 7, 7)] for kind in kinds]
    return [Case(d, s, dtype, layout) for d in DEVICES for s in GRID for dtype in DTYPES for layout in LAYOUTS]


def implementations(weights: dict[str, Tensor]) -> dict[str, nn.Module]:
    """The eager reference, the compiled reference, and the fused module, each with copies of these weights."""
    hidden, channels = weights["w1"].shape[:2]
    eager = reference.CBAM(channels, REDUCTION)
    fused = cbam_fused.CBAM(channels, REDUCTION)
    for module in (eager, fused):
        module.to(weights["w1"].device, weights["w1"].dtype)
        with torch.no_grad():
            for own, given in zip(module.weights(), (weights["w1"], weights["w2"], weights["ws"]), strict=True):
                own.copy_(given)
    torch._dynamo.reset()
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=False)
    return {"eager": eager, "compile": compiled, "fused": fused}
