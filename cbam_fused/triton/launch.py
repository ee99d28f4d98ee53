"""One function a kernel: the grid, the tile, the small tensors that the kernel leaves for the next one.

All take a Call, which names the images that the launch is for. What belongs to an absent gate, or pool, is None.
Tensors of x's size are dense in the call's layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
import triton
from torch import Tensor

from ..tensors import terms
from ..variants.config import (
    ACTIVATION,
    EVEN,
    GATE_TERMS,
    HARD_CHANNEL,
    HARD_SPATIAL,
    MEAN_OF_POOLS,
    NO_AVG,
    NO_MAX,
    SINGLE,
)
from . import backward, common, forward, gate, gradients
from .tiles import LOOP, THREADS, Tile, alignment, groups_pay, images_per_launch, mlp_tile, power_of_two, tile, warps

SINGLE_ROW = 64  # hidden values of a program in the backward of a single layer


@dataclass(frozen=True)
class Call:
    """The sizes of a call, and the images [first, first + images) of a launch. P is H W, K the k of functional.cbam.

    R is 0 without a channel gate, K without a spatial gate, or where the operator is not told of its weights.
    saved_size and index_size are those of a row of saved and of index.
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
        """Numbers in ws and bs."""
        return 2 * self.K**2 + 1

    @property
    def avg(self) -> bool:
        return self.channel and not self.switches & NO_AVG

    @property
    def max(self) -> bool:
        return self.channel and not self.switches & NO_MAX

    @property
    def pools(self) -> int:
        """How many of them saved has, in front of g."""
        return self.avg + self.max

    @property
    def terms(self) -> int:
        """How often the MLP is taken."""
        return terms(self.switches)

    @property
    def gates(self) -> int:
        """How many sums of its results have a sigmoid of their own."""
        return 2 if self.switches & GATE_TERMS else 1

    @property
    def single(self) -> bool:
        """Whether the MLP is one layer."""
        return self.channel and bool(self.switches & SINGLE)

    @property
    def even(self) -> bool:
        """Whether there are maxima whose gradient goes to all that reach them."""
        return bool(self.switches & EVEN and (self.max or self.K))

    @property
    def hard(self) -> dict:
        return {"HARD": bool(self.switches & HARD_SPATIAL)}

    @property
    def mlp(self) -> dict:
        """What the kernels of the channel gate are compiled for."""
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
        """Numbers that an image leaves for the gradients of the parameters, as gate.py has them."""
        dhidden = 0 if self.single else self.terms * self.R
        return (self.gates * (self.C + self.R) + dhidden if self.channel else 0) + self.conv_size

    @property
    def wide(self) -> bool:
        return self.acc == torch.float64

    @property
    def layout(self) -> dict:
        return {"CHANNELS_LAST": self.channels_last, "ALIGN": alignment(self.C if self.channels_last else self.P)}

    def launch(self, warps: int) -> dict:
        """Options of every launch; other GPUs than NVIDIA's do not know launch_pdl."""
        return {"num_warps": warps, "PDL": self.pdl} | ({"launch_pdl": True} if self.pdl else {})

    def tile(self, reduces: str) -> Tile:
        return tile(reduces, self.C, self.P, self.channels_last, self.wide, self.warp_size)

    def groups(self, x: Tensor, tensors: int) -> Iterator["Call"]:
        """The call in groups of images; tensors: how many of x's size a pass over all of them touches, or 0 where no
        pass finds what another has left in a cache, and all images go together.
        """
        size = images_per_launch(self.N, tensors * self.C * self.P * x.element_size(), l2_bytes(x.device))
        for first in range(0, self.N, max(1, size)):
            yield replace(self, first=first, images=min(size, self.N - first))

    def part(self, t: Tensor) -> Tensor:
        """What belongs to the images of this launch in t, (N, ...)."""
        return t[self.first : self.first + self.images]


@cache
def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's data centre GPUs, elsewhere 32 or of no importance."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


@cache
def pdl(device: torch.device) -> bool:
    """Whether a launch may begin before the last one has ended: from Hopper on, where Triton has it."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    return hasattr(triton.language.extra.cuda, "gdc_wait")


@cache
def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache where it is worth having groups of images found in it; else, or if unknown, 0."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    # kHz, bits, two transfers a clock; a PyTorch that does not tell has no groups.
    clock, width = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return properties.L2_cache_size if groups_pay(properties.L2_cache_size, 2 * clock * width // 8 // 1000) else 0


def _blocks(call: Call, t: Tile) -> dict:
    return {"BLOCK_C": t.channels, "BLOCK_P": t.pixels, **call.launch(t.warps)}


def channel_pool(call: Call, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Partial sums, maxima and places of the maxima, (images, splits, C)."""
    t = call.tile("pixels")
    chunk = LOOP * t.pixels
    splits = triton.cdiv(call.P, chunk)
    size = (call.images, splits, call.C)
    parts = (
        x.new_empty(size, dtype=call.acc) if call.avg else None,
        x.new_empty(size, dtype=call.acc) if call.max else None,
        x.new_empty(size, dtype=torch.int32) if call.max else None,
    )
    acc = triton.language.float64 if call.wide else triton.language.float32
    options = {"ACC": acc, "EVEN": call.even, "CHUNK": chunk, **call.layout, **_blocks(call, t)}
    forward.cbam_fwd_channel_pool[(call.images * triton.cdiv(call.C, t.channels) * splits,)](
        x, *parts, call.first, splits, call.C, call.P, **options
    )
    return parts


def channel_gate(call: Call, pooled, w1, b1, w2, b2, saved: Tensor, index: Tensor) -> None:
    """pooled: what channel_pool gave. w1 None: a single layer."""
    t = mlp_tile(call.C, call.R, call.wide, call.warp_size)
    chunk = LOOP * t.channels if call.single else call.C
    parts, splits = triton.cdiv(call.C, chunk), (pooled[0] if call.avg else pooled[1]).shape[1]
    sizes = (call.first, splits, parts, chunk, call.C, call.R, call.P, call.saved_size, call.index_size)
    options = {"MEAN_OF_POOLS": bool(call.switches & MEAN_OF_POOLS), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    gate.cbam_fwd_channel_gate[(call.images * parts,)](
        *pooled, w1, b1, w2, b2, saved, index, *sizes, **call.mlp, **options, **call.launch(t.warps)
    )


def spatial_pool(call: Call, x: Tensor, saved: Tensor, index: Tensor) -> None:
    t = call.tile("channels")
    sizes = (call.first, call.C, call.P, call.saved_size, call.index_size)
    options = {"POOLS": call.pools, "EVEN": call.even, **call.layout, **_blocks(call, t)}
    forward.cbam_fwd_spatial_pool[(call.images * triton.cdiv(call.P, t.pixels),)](x, saved, index, *sizes, **options)


def apply(
    call: Call, saved: Tensor, ws=None, bs=None, *, s=None, x=None, residual=None, y=None, relu: bool = False
) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = 1 if y is None else triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.H, call.W, call.saved_size)
    options = {"POOLS": call.pools, **call.hard, "K": call.K, "RELU": relu, "CHUNK": chunk}
    forward.cbam_fwd_apply[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        x, residual, ws, bs, saved, s, y, *sizes, **options, **call.layout, **_blocks(call, t)
    )


def products(call: Call, x: Tensor, dy: Tensor, y, masked: Tensor, saved: Tensor, s, ds: Tensor | None):
    """Sums of s x dy over the pixels of each tile, (images, tiles, C); into ds, (images, P), those over channels.

    Each of them for a gate that there is.
    """
    t = call.tile("channels")
    tiles = triton.cdiv(call.P, t.pixels)
    over_pixels = saved.new_empty((call.images, tiles, call.C)) if call.channel else None
    sizes = (call.first, call.C, call.P, call.saved_size)
    options = {"POOLS": call.pools, **call.hard, **call.layout, **_blocks(call, t)}
    backward.cbam_bwd_products[(call.images * tiles,)](x, dy, y, masked, saved, s, ds, over_pixels, *sizes, **options)
    return over_pixels


def join(call: Call, parts: Tensor, sums: Tensor) -> None:
    """Sums of parts, (images, rows, C), over the rows, into sums, (images, C)."""
    channels = min(THREADS, power_of_two(call.C))
    options = {"BLOCK_C": channels, **call.launch(warps(gate.ROWS.value * channels, 4, call.warp_size))}
    gate.cbam_bwd_join[(call.images * triton.cdiv(call.C, channels),)](parts, sums, parts.shape[1], call.C, **options)


def spatial_gate_backward(
    call: Call, dlogits: Tensor, saved: Tensor, index: Tensor, ws: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the two maps, (images, 2, P), and of ws and bs, (images, tiles, 2 K K + 1)."""
    taps, values = common.TAPS.value, 4 if call.wide else 8
    pixels = min(values * THREADS // taps, power_of_two(call.P))
    tiles = triton.cdiv(call.P, pixels)
    dmaps = saved.new_empty((call.images, 2, call.P))
    dconv = saved.new_empty((call.images, tiles, call.conv_size))
    sizes = (call.first, call.C, call.H, call.W, call.saved_size, call.index_size)
    options = {"K": call.K, "BLOCK_P": pixels, **call.launch(warps(taps * pixels, values, call.warp_size))}
    backward.cbam_bwd_spatial_gate[(call.images * tiles,)](
        dlogits, saved, index, ws, dmaps, dconv, *sizes, EVEN=call.even, **options
    )
    return dmaps, dconv


def map_products(call: Call, x: Tensor, dmaps: Tensor, saved: Tensor, index: Tensor) -> Tensor:
    """Partial sums over the pixels of x times the gradient of g x through the maps, (images, splits, C)."""
    t = call.tile("pixels")
    chunk = LOOP * t.pixels
    splits = triton.cdiv(call.P, chunk)
    sums = dmaps.new_empty((call.images, splits, call.C))
    sizes = (call.first, splits, call.C, call.P, call.saved_size, call.index_size)
    options = {"POOLS": call.pools, "EVEN": call.even, "CHUNK": chunk, **call.layout, **_blocks(call, t)}
    backward.cbam_bwd_map_products[(call.images * triton.cdiv(call.C, t.channels) * splits,)](
        x, dmaps, saved, index, sums, *sizes, **options
    )
    return sums


def channel_gate_backward(
    call: Call, direct, through_maps, dconv, w1, w2, saved: Tensor, index: Tensor, partial: Tensor
) -> Tensor | None:
    """Gradients of the pools, (images, pools, C); the rest of what gate.py says goes into partial."""
    t = mlp_tile(call.C, min(call.R, SINGLE_ROW) if call.single else call.R, call.wide, call.warp_size)
    parts = triton.cdiv(call.R, t.pixels) if call.single else 1
    dpools = saved.new_empty((call.images, call.pools, call.C)) if call.channel else None
    rows = (0 if parts is None else parts.shape[1] for parts in (direct, through_maps, dconv))
    sizes = (call.first, parts, *rows, call.C, call.R, call.P, call.saved_size, call.index_size, call.partial_size)
    blocks = {"BLOCK_K": min(128, power_of_two(call.conv_size)), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    gate.cbam_bwd_channel_gate[(call.images * parts,)](
        *(direct, through_maps, dconv, w1, w2, saved, index, partial, dpools),
        *sizes,
        MAX=call.max,
        K=call.K,
        **call.mlp,
        **blocks,
        **call.launch(t.warps),
    )
    return dpools


def input_gradient(call: Call, dy, x: Tensor, saved: Tensor, s, index: Tensor, dmaps, dpools, dx: Tensor) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.P, call.saved_size, call.index_size)
    options = {"POOLS": call.pools, "MAX": call.max, "CHUNK": chunk, **call.layout, **_blocks(call, t)}
    backward.cbam_bwd_input[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        dy, x if call.even else None, saved, s, index, dmaps, dpools, dx, *sizes, **options
    )


def parameter_gradients(call: Call, partial: Tensor, saved: Tensor, grads: list[Tensor | None]) -> None:
    """Into grads: those of w1, w2, ws, b1, b2, bs, contiguous; None for absent ones, w1 and b1 of a single layer."""
    channels, hidden, conv = min(32, power_of_two(call.C)), min(16, power_of_two(call.R)), call.conv_size
    blocks = {"BLOCK_N": 8, "BLOCK_K": min(128, power_of_two(conv)), "BLOCK_C": channels, "BLOCK_R": hidden}
    tiles = triton.cdiv(call.C, channels) * triton.cdiv(call.R, hidden)
    conv_tiles = triton.cdiv(conv, blocks["BLOCK_K"]) if call.K else 0
    sizes = (call.N, call.C, call.R, call.saved_size, call.partial_size)
    options = {"TERMS": call.terms, "GATES": call.gates, "K": call.K, **call.launch(THREADS // call.warp_size)}
    gradients.cbam_bwd_parameters[(tiles + conv_tiles,)](partial, saved, *grads, *sizes, **blocks, **options)
