"""The raw operators forward and backward, as _ops.py describes them, on the Triton kernels."""

import contextlib
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .. import _ops
from . import backward as backward_kernels
from . import forward as forward_kernels
from . import gate, gradients
from .tiles import LOOP, Tile, alignment, images_per_launch, mlp_tile, power_of_two, tile


@dataclass
class Call:
    """The sizes of one call, and what every launch needs of them."""

    N: int
    C: int
    R: int
    H: int
    W: int
    K: int
    channels_last: bool
    wide: bool

    def __post_init__(self):
        self.P = self.H * self.W
        if self.C * self.P >= 2**31:
            raise ValueError(f"the Triton kernels take images of less than 2^31 elements, got {self.C} x {self.P}")

    def layout(self) -> dict:
        return {"CHANNELS_LAST": self.channels_last, "ALIGN": alignment(self.C if self.channels_last else self.P)}

    def tile(self, reduces: str) -> Tile:
        return tile(reduces, self.C, self.P, self.channels_last, self.wide)

    def groups(self, x: Tensor, tensors: int):
        """First image and number of images of each group; tensors of x's size are touched by its passes."""
        size = images_per_launch(self.N, tensors * self.C * self.P * x.element_size(), _l2_bytes(x.device))
        for first in range(0, self.N, max(1, size)):
            yield first, min(size, self.N - first)


def _call(x: Tensor, w1: Tensor | None, ws: Tensor | None) -> Call:
    if w1 is None or ws is None:
        raise NotImplementedError("the Triton kernels serve both gates together: w1, w2 and ws must be given")
    N, C, H, W = x.shape
    return Call(N, C, w1.shape[0], H, W, ws.shape[3], _ops.is_channels_last(x), x.dtype == torch.float64)


def _l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache, 0 if unknown."""
    if device.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(device).L2_cache_size


def _on(device: torch.device):
    """Makes the device of the tensors the current one, which Triton launches on."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.accelerator.device_index(device.index)


def _dense(t: Tensor | None, channels_last: bool) -> Tensor | None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return t if t is None else t.contiguous(memory_format=layout)


def _options(t: Tile) -> dict:
    return {"BLOCK_C": t.channels, "BLOCK_P": t.pixels, "num_warps": t.warps}


def forward(x, w1, b1, w2, b2, ws, bs, residual, relu):
    call = _call(x, w1, ws)
    N, C, R, P = call.N, call.C, call.R, call.P
    y = _ops._dense_like(x)
    x, residual = (_dense(t, call.channels_last) for t in (x, residual))
    w1, b1, w2, b2, ws, bs = (None if t is None else t.contiguous() for t in (w1, b1, w2, b2, ws, bs))
    acc = _ops.accumulation_dtype(x.dtype)
    saved = x.new_empty((N, 3 * C + 2 * R + 3 * P), dtype=acc)
    index = x.new_empty((N, C + P), dtype=torch.int32)
    pool, maps, product, mlp = call.tile("pixels"), call.tile("channels"), call.tile("none"), mlp_tile(C, R, call.wide)
    pixels, channels = LOOP * pool.pixels, LOOP * product.channels
    splits = triton.cdiv(P, pixels)
    with _on(x.device):
        for first, images in call.groups(x, 2 if residual is None else 3):
            partial = (images, splits, C)
            sums, maxima = x.new_empty(partial, dtype=acc), x.new_empty(partial, dtype=acc)
            argmaxima = x.new_empty(partial, dtype=torch.int32)
            forward_kernels.channel_pool[(images * triton.cdiv(C, pool.channels) * splits,)](
                x, sums, maxima, argmaxima, first, splits, C, P, CHUNK=pixels, **call.layout(), **_options(pool)
            )
            gate.channel_gate[(images,)](
                sums,
                maxima,
                argmaxima,
                w1,
                b1,
                w2,
                b2,
                saved,
                index,
                first,
                splits,
                C,
                R,
                P,
                BLOCK_C=mlp.channels,
                BLOCK_R=mlp.pixels,
                num_warps=mlp.warps,
            )
            forward_kernels.spatial_pool[(images * triton.cdiv(P, maps.pixels),)](
                x, saved, index, first, C, R, P, **call.layout(), **_options(maps)
            )
            runs = triton.cdiv(C, channels)
            forward_kernels.gate_and_apply[(images * triton.cdiv(P, product.pixels) * runs,)](
                x,
                residual,
                ws,
                bs,
                saved,
                y,
                first,
                runs,
                C,
                R,
                call.H,
                call.W,
                K=call.K,
                RELU=relu,
                CHUNK=channels,
                **call.layout(),
                **_options(product),
            )
    return y, saved, index


def backward(dy, x, y, saved, index, w1, b1, w2, b2, ws, bs):
    call = _call(x, w1, ws)
    N, C, R, P, K = call.N, call.C, call.R, call.P, call.K
    dx = _ops._dense_like(x)
    masked = x.new_empty((0,)) if y is None else torch.empty_like(dx)
    dy, x, y = (_dense(t, call.channels_last) for t in (dy, x, y))
    params = (w1, b1, w2, b2, ws, bs)
    w1, w2, ws = (t.contiguous() for t in (w1, w2, ws))
    conv = 2 * K * K + 1
    partial = saved.new_empty((N, C + 2 * R + conv))
    sums, dots, product = call.tile("channels"), call.tile("pixels"), call.tile("none")
    mlp, BLOCK_K = mlp_tile(C, R, call.wide), min(128, power_of_two(conv))
    pixels, channels = LOOP * dots.pixels, LOOP * product.channels
    tiles, splits, runs = triton.cdiv(P, sums.pixels), triton.cdiv(P, pixels), triton.cdiv(C, channels)
    map_tile = min(128, power_of_two(P))
    map_tiles = triton.cdiv(P, map_tile)
    with _on(x.device):
        for first, images in call.groups(x, 3 if y is None else 5):
            over_channels, over_pixels = saved.new_empty((images, P)), saved.new_empty((images, tiles, C))
            backward_kernels.products[(images * tiles,)](
                x, dy, y, masked, saved, over_channels, over_pixels, first, C, R, P, **call.layout(), **_options(sums)
            )
            dmaps, dconv = saved.new_empty((images, 2, P)), saved.new_empty((images, map_tiles, conv))
            backward_kernels.spatial_gate_backward[(images * map_tiles,)](
                over_channels, saved, ws, dmaps, dconv, first, C, R, call.H, call.W, K=K, BLOCK_P=map_tile
            )
            through_maps = saved.new_empty((images, splits, C))
            backward_kernels.map_products[(images * triton.cdiv(C, dots.channels) * splits,)](
                x, dmaps, index, through_maps, first, splits, C, P, CHUNK=pixels, **call.layout(), **_options(dots)
            )
            dpools = saved.new_empty((images, 2, C))
            gate.channel_gate_backward[(images,)](
                over_pixels,
                through_maps,
                dconv,
                w1,
                w2,
                saved,
                partial,
                dpools,
                first,
                tiles,
                splits,
                map_tiles,
                C,
                R,
                P,
                K=K,
                BLOCK_K=BLOCK_K,
                BLOCK_C=mlp.channels,
                BLOCK_R=mlp.pixels,
                num_warps=mlp.warps,
            )
            backward_kernels.input_gradient[(images * triton.cdiv(P, product.pixels) * runs,)](
                dy if y is None else masked,
                saved,
                index,
                dmaps,
                dpools,
                dx,
                first,
                runs,
                C,
                R,
                P,
                CHUNK=channels,
                **call.layout(),
                **_options(product),
            )
        grads = [None if p is None else torch.empty_like(p, memory_format=torch.contiguous_format) for p in params]
        BLOCK_C, BLOCK_R = min(32, power_of_two(C)), min(16, power_of_two(R))
        gradients.parameter_gradients[
            (triton.cdiv(C, BLOCK_C) * triton.cdiv(R, BLOCK_R) + triton.cdiv(conv, BLOCK_K),)
        ](partial, saved, *grads, N, C, R, P, K=K, BLOCK_N=8, BLOCK_K=BLOCK_K, BLOCK_C=BLOCK_C, BLOCK_R=BLOCK_R)
    # Absent gradients are empty; the others have the parameter's strides.
    strided = (saved.new_empty((0,)) if p is None else torch.empty_like(p).copy_(g) for g, p in zip(grads, params))
    return dx, masked, *strided
