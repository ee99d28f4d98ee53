"""One function a kernel: the grid, the tile, the small tensors that the kernel leaves for the next one.

All take a Call, which names the images that the launch is for. Tensors of x's size are dense in the call's layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from . import backward, forward, gate, gradients
from .tiles import LOOP, THREADS, Tile, alignment, images_per_launch, mlp_tile, power_of_two, tile, warps


@dataclass(frozen=True)
class Call:
    """The sizes of a call in the letters of the README, and the images [first, first + images) of a launch."""

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
        """The call in groups of images; tensors: how many of x's size a pass over all of them touches."""
        size = images_per_launch(self.N, tensors * self.C * self.P * x.element_size(), l2_bytes(x.device))
        for first in range(0, self.N, max(1, size)):
            yield replace(self, first=first, images=min(size, self.N - first))


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's data centre GPUs, elsewhere 32 or of no importance."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache, 0 if unknown."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def _blocks(t: Tile) -> dict:
    return {"BLOCK_C": t.channels, "BLOCK_P": t.pixels, "num_warps": t.warps}


def channel_pool(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Partial sums, maxima and places of the maxima, (images, splits, C)."""
    t = call.tile("pixels")
    chunk = LOOP * t.pixels
    splits = triton.cdiv(call.P, chunk)
    size = (call.images, splits, call.C)
    parts = [x.new_empty(size, dtype=dtype) for dtype in (call.acc, call.acc, torch.int32)]
    forward.channel_pool[(call.images * triton.cdiv(call.C, t.channels) * splits,)](
        x, *parts, call.first, splits, call.C, call.P, CHUNK=chunk, **call.layout, **_blocks(t)
    )
    return tuple(parts)


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


def gate_and_apply(call: Call, x: Tensor, residual, ws: Tensor, bs, saved: Tensor, y: Tensor, relu: bool) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.R, call.H, call.W)
    options = {"K": call.K, "RELU": relu, "CHUNK": chunk, **call.layout, **_blocks(t)}
    forward.gate_and_apply[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        x, residual, ws, bs, saved, y, *sizes, **options
    )


def products(call: Call, x: Tensor, dy: Tensor, y, masked: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of g x dy over channels, (images, P), and of s x dy over the pixels of each tile, (images, tiles, C)."""
    t = call.tile("channels")
    tiles = triton.cdiv(call.P, t.pixels)
    over_channels = saved.new_empty((call.images, call.P))
    over_pixels = saved.new_empty((call.images, tiles, call.C))
    sizes = (call.first, call.C, call.R, call.P)
    backward.products[(call.images * tiles,)](
        x, dy, y, masked, saved, over_channels, over_pixels, *sizes, **call.layout, **_blocks(t)
    )
    return over_channels, over_pixels


def spatial_gate_backward(call: Call, over_channels: Tensor, saved: Tensor, ws: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the two maps, (images, 2, P), and of ws and bs, (images, tiles, 2 K K + 1)."""
    pixels = min(128, power_of_two(call.P))
    tiles = triton.cdiv(call.P, pixels)
    dmaps = saved.new_empty((call.images, 2, call.P))
    dconv = saved.new_empty((call.images, tiles, 2 * call.K**2 + 1))
    sizes = (call.first, call.C, call.R, call.H, call.W)
    options = {"K": call.K, "BLOCK_P": pixels, "num_warps": warps(backward.TAPS.value * pixels, 8, call.warp_size)}
    backward.spatial_gate_backward[(call.images * tiles,)](over_channels, saved, ws, dmaps, dconv, *sizes, **options)
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
    call: Call, direct: Tensor, through_maps: Tensor, dconv: Tensor, w1: Tensor, w2: Tensor, saved, partial
) -> Tensor:
    """Gradients of the two pools, (images, 2, C); the rest of what gate.py says goes into partial."""
    t = mlp_tile(call.C, call.R, call.wide, call.warp_size)
    dpools = saved.new_empty((call.images, 2, call.C))
    rows = (direct.shape[1], through_maps.shape[1], dconv.shape[1])
    blocks = {"BLOCK_K": min(128, power_of_two(dconv.shape[2])), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    sizes = (call.first, *rows, call.C, call.R, call.P)
    gate.channel_gate_backward[(call.images,)](
        direct, through_maps, dconv, w1, w2, saved, partial, dpools, *sizes, K=call.K, **blocks, num_warps=t.warps
    )
    return dpools


def input_gradient(call: Call, dy: Tensor, saved: Tensor, index: Tensor, dmaps: Tensor, dpools, dx) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.R, call.P)
    backward.input_gradient[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        dy, saved, index, dmaps, dpools, dx, *sizes, CHUNK=chunk, **call.layout, **_blocks(t)
    )


def parameter_gradients(call: Call, partial: Tensor, saved: Tensor, grads: list[Tensor | None]) -> None:
    """Into grads: those of w1, b1, w2, b2, ws, bs, contiguous; None for absent biases."""
    channels, hidden, conv = min(32, power_of_two(call.C)), min(16, power_of_two(call.R)), 2 * call.K**2 + 1
    blocks = {"BLOCK_N": 8, "BLOCK_K": min(128, power_of_two(conv)), "BLOCK_C": channels, "BLOCK_R": hidden}
    tiles = triton.cdiv(call.C, channels) * triton.cdiv(call.R, hidden)
    sizes = (call.N, call.C, call.R, call.P)
    gradients.parameter_gradients[(tiles + triton.cdiv(conv, blocks["BLOCK_K"]),)](
        partial, saved, *grads, *sizes, K=call.K, **blocks, num_warps=THREADS // call.warp_size
    )
