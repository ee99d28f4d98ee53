"""One function a kernel: the grid, the tile, the small tensors that the kernel leaves for the next one.

All take a Call, which names the images that the launch is for. What belongs to an absent gate is None. Tensors of x's
size are dense in the call's layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from . import backward, common, forward, gate, gradients
from .tiles import LOOP, THREADS, Tile, alignment, groups_pay, images_per_launch, mlp_tile, power_of_two, tile, warps


@dataclass(frozen=True)
class Call:
    """The sizes of a call, and the images [first, first + images) of a launch. P is H W, K the k of functional.cbam.

    R is 0 without a channel gate, K without a spatial gate, or where the operator is not told of its weights.
    """

    N: int
    C: int
    R: int
    H: int
    W: int
    K: int
    channels_last: bool
    acc: torch.dtype
    warp_size: int
    first: int = 0
    images: int = 0
    tuned: tuple[tuple[str, Tile], ...] = ()  # tiles in place of the table's, by what a pass reduces

    @property
    def P(self) -> int:
        return self.H * self.W

    @property
    def conv_size(self) -> int:
        """Numbers in ws and bs."""
        return 2 * self.K**2 + 1

    @property
    def wide(self) -> bool:
        return self.acc == torch.float64

    @property
    def layout(self) -> dict:
        return {"CHANNELS_LAST": self.channels_last, "ALIGN": alignment(self.C if self.channels_last else self.P)}

    @property
    def shape_class(self) -> tuple:
        """What tiles are chosen by, as the arguments of tiles.tile."""
        return self.C, self.P, self.channels_last, self.wide, self.warp_size

    def tile(self, reduces: str) -> Tile:
        return dict(self.tuned).get(reduces) or tile(reduces, *self.shape_class)

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


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's data centre GPUs, elsewhere 32 or of no importance."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache where it is worth having groups of images found in it; else, or if unknown, 0."""
    if device.type != "cuda":
        return 0
    properties = torch.cuda.get_device_properties(device)
    # kHz, bits, two transfers a clock; a PyTorch that does not tell has no groups.
    clock, width = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
    return properties.L2_cache_size if groups_pay(properties.L2_cache_size, 2 * clock * width // 8 // 1000) else 0


def _blocks(t: Tile) -> dict:
    return {"BLOCK_C": t.channels, "BLOCK_P": t.pixels, "num_warps": t.warps}


def channel_pool(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Partial sums, maxima and places of the maxima, (images, splits, C)."""
    t = call.tile("pixels")
    chunk = LOOP * t.pixels
    splits = triton.cdiv(call.P, chunk)
    size = (call.images, splits, call.C)
    sums, maxima, places = (x.new_empty(size, dtype=dtype) for dtype in (call.acc, call.acc, torch.int32))
    forward.channel_pool[(call.images * triton.cdiv(call.C, t.channels) * splits,)](
        x, sums, maxima, places, call.first, splits, call.C, call.P, CHUNK=chunk, **call.layout, **_blocks(t)
    )
    return sums, maxima, places


def channel_gate(call: Call, parts, w1, b1, w2, b2, saved: Tensor, index: Tensor) -> None:
    t = mlp_tile(call.C, call.R, call.wide, call.warp_size)
    sizes = (call.first, parts[0].shape[1], call.C, call.R, call.P)
    gate.channel_gate[(call.images,)](
        *parts, w1, b1, w2, b2, saved, index, *sizes, BLOCK_C=t.channels, BLOCK_R=t.pixels, num_warps=t.warps
    )


def spatial_pool(call: Call, x: Tensor, saved: Tensor, index: Tensor) -> None:
    t = call.tile("channels")
    forward.spatial_pool[(call.images * triton.cdiv(call.P, t.pixels),)](
        x, saved, index, call.first, call.C, call.R, call.P, **call.layout, **_blocks(t)
    )


def gate_and_apply(
    call: Call, saved: Tensor, ws=None, bs=None, *, s=None, x=None, residual=None, y=None, relu: bool = False
) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = 1 if y is None else triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.R, call.H, call.W)
    options = {"K": call.K, "RELU": relu, "CHUNK": chunk, **call.layout, **_blocks(t)}
    forward.gate_and_apply[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        x, residual, ws, bs, saved, s, y, *sizes, **options
    )


def products(call: Call, x: Tensor, dy: Tensor, y, masked: Tensor, saved: Tensor, s, ds: Tensor) -> Tensor:
    """Sums of s x dy over the pixels of each tile, (images, tiles, C); into ds, (images, P), those over channels."""
    t = call.tile("channels")
    tiles = triton.cdiv(call.P, t.pixels)
    over_pixels = saved.new_empty((call.images, tiles, call.C))
    sizes = (call.first, call.C, call.R, call.P)
    backward.products[(call.images * tiles,)](
        x, dy, y, masked, saved, s, ds, over_pixels, *sizes, **call.layout, **_blocks(t)
    )
    return over_pixels


def join(call: Call, parts: Tensor, sums: Tensor) -> None:
    """Sums of parts, (images, rows, C), over the rows, into sums, (images, C)."""
    channels = min(THREADS, power_of_two(call.C))
    options = {"BLOCK_C": channels, "num_warps": warps(gate.ROWS.value * channels, 4, call.warp_size)}
    gate.join[(call.images * triton.cdiv(call.C, channels),)](parts, sums, parts.shape[1], call.C, **options)


def spatial_gate_backward(call: Call, dlogits: Tensor, saved: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the two maps, (images, 2, P), and of ws and bs, (images, tiles, 2 K K + 1)."""
    taps, values = common.TAPS.value, 4 if call.wide else 8
    pixels = min(values * THREADS // taps, power_of_two(call.P))
    tiles = triton.cdiv(call.P, pixels)
    dmaps = saved.new_empty((call.images, 2, call.P))
    dconv = saved.new_empty((call.images, tiles, call.conv_size))
    sizes = (call.first, call.C, call.R, call.H, call.W)
    options = {"K": call.K, "BLOCK_P": pixels, "num_warps": warps(taps * pixels, values, call.warp_size)}
    backward.spatial_gate_backward[(call.images * tiles,)](dlogits, saved, ws, dmaps, dconv, *sizes, **options)
    return dmaps, dconv


def map_products(call: Call, x: Tensor, dmaps: Tensor, index: Tensor) -> Tensor:
    """Partial sums over the pixels of x times the gradient of g x through the maps, (images, splits, C)."""
    t = call.tile("pixels")
    chunk = LOOP * t.pixels
    splits = triton.cdiv(call.P, chunk)
    sums = dmaps.new_empty((call.images, splits, call.C))
    backward.map_products[(call.images * triton.cdiv(call.C, t.channels) * splits,)](
        x, dmaps, index, sums, call.first, splits, call.C, call.P, CHUNK=chunk, **call.layout, **_blocks(t)
    )
    return sums


def channel_gate_backward(
    call: Call, direct: Tensor, through_maps, dconv, w1, w2, saved: Tensor, partial: Tensor
) -> Tensor | None:
    """Gradients of the two pools, (images, 2, C); the rest of what gate.py says goes into partial."""
    t = mlp_tile(call.C, call.R, call.wide, call.warp_size)
    dpools = None if w1 is None else saved.new_empty((call.images, 2, call.C))
    rows = (0 if parts is None else parts.shape[1] for parts in (direct, through_maps, dconv))
    blocks = {"BLOCK_K": min(128, power_of_two(call.conv_size)), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    sizes = (call.first, *rows, call.C, call.R, call.P)
    gate.channel_gate_backward[(call.images,)](
        direct, through_maps, dconv, w1, w2, saved, partial, dpools, *sizes, K=call.K, **blocks, num_warps=t.warps
    )
    return dpools


def input_gradient(call: Call, dy, saved: Tensor, s, index: Tensor, dmaps, dpools, dx: Tensor) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.R, call.P)
    backward.input_gradient[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        dy, saved, s, index, dmaps, dpools, dx, *sizes, CHUNK=chunk, **call.layout, **_blocks(t)
    )


def parameter_gradients(call: Call, partial: Tensor, saved: Tensor, grads: list[Tensor | None]) -> None:
    """Into grads: those of w1, w2, ws, b1, b2, bs, contiguous; None for absent ones."""
    channels, hidden, conv = min(32, power_of_two(call.C)), min(16, power_of_two(call.R)), call.conv_size
    blocks = {"BLOCK_N": 8, "BLOCK_K": min(128, power_of_two(conv)), "BLOCK_C": channels, "BLOCK_R": hidden}
    tiles = triton.cdiv(call.C, channels) * triton.cdiv(call.R, hidden)
    conv_tiles = triton.cdiv(conv, blocks["BLOCK_K"]) if call.K else 0
    sizes = (call.N, call.C, call.R, call.P)
    gradients.parameter_gradients[(tiles + conv_tiles,)](
        partial, saved, *grads, *sizes, K=call.K, **blocks, num_warps=THREADS // call.warp_size
    )
