"""The sizes and switches of a call, and the images of a launch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..tensors import terms
from ..variants.config import ACTIVATION, EVEN, GATE_TERMS, HARD_CHANNEL, HARD_SPATIAL, NO_AVG, NO_MAX, SINGLE
from .gpu import l2_bytes
from .tiles import Tile, alignment, images_per_launch, tile


@dataclass(frozen=True)
class Call:
    """The sizes of a call, and the images [first, first + images) of a launch. P is H W, K the size of the window.

    R is 0 without a channel gate, K without a spatial gate; both are 0 in operators without the weights as arguments.
    saved_size and index_size are the lengths of a row of saved and of index.
    """

    N: int
    C: int
    R: int
    H: int
    W: int
    K: int
    switches: int
    channel: bool
    saved_size: int
    index_size: int
    channels_last: bool
    acc: torch.dtype
    warp_size: int
    pdl: bool
    first: int = 0
    images: int = 0

    @property
    def P(self) -> int:
        return self.H * self.W

    @property
    def conv_size(self) -> int:
        """Elements of ws and bs."""
        return 2 * self.K**2 + 1

    @property
    def avg(self) -> bool:
        return self.channel and not self.switches & NO_AVG

    @property
    def max(self) -> bool:
        return self.channel and not self.switches & NO_MAX

    @property
    def pools(self) -> int:
        """Pools in a row of saved."""
        return self.avg + self.max

    @property
    def terms(self) -> int:
        """How many times the MLP runs."""
        return terms(self.switches)

    @property
    def gates(self) -> int:
        """Sigmoids whose sum is g."""
        return 2 if self.switches & GATE_TERMS else 1

    @property
    def single(self) -> bool:
        """Whether the MLP is one layer."""
        return self.channel and bool(self.switches & SINGLE)

    @property
    def even(self) -> bool:
        """Whether tied maxima share their gradient."""
        return bool(self.switches & EVEN and (self.max or self.K))

    @property
    def hard(self) -> dict[str, Any]:
        return {"HARD": bool(self.switches & HARD_SPATIAL)}

    @property
    def mlp(self) -> dict[str, Any]:
        """Compile-time constants of the channel gate's kernels."""
        return {
            "POOLS": self.pools,
            "TERMS": self.terms,
            "GATES": self.gates,
            "ACT": self.switches >> ACTIVATION & 3,
            "HARD": bool(self.switches & HARD_CHANNEL),
            "EVEN": self.even,
        }

    @property
    def partial_size(self) -> int:
        """Length of a row of partial; mlp_backward.py has its layout."""
        dhidden = 0 if self.single else self.terms * self.R
        return (self.gates * (self.C + self.R) + dhidden if self.channel else 0) + self.conv_size

    @property
    def wide(self) -> bool:
        return self.acc == torch.float64

    @property
    def layout(self) -> dict[str, Any]:
        return {"CHANNELS_LAST": self.channels_last, "ALIGN": alignment(self.C if self.channels_last else self.P)}

    def launch(self, warps: int) -> dict[str, Any]:
        """Options of every launch. Only NVIDIA's backend has launch_pdl."""
        return {"num_warps": warps, "PDL": self.pdl} | ({"launch_pdl": True} if self.pdl else {})

    def tile(self, reduces: str) -> Tile:
        return tile(reduces, self.C, self.P, self.channels_last, self.wide, self.warp_size)

    def groups(self, x: Tensor, tensors: int) -> Iterator["Call"]:
        """The call in groups of images, so that the later passes of a group find it in L2.

        tensors: the tensors of x's size that the passes access; 0: a single group, because no pass reads again what
        another has accessed.
        """
        size = images_per_launch(self.N, tensors * self.C * self.P * x.element_size(), l2_bytes(x.device))
        for first in range(0, self.N, max(1, size)):
            yield replace(self, first=first, images=min(size, self.N - first))

    def part(self, t: Tensor) -> Tensor:
        """The rows of t, (N, ...), of the images of this launch."""
        return t[self.first : self.first + self.images]
