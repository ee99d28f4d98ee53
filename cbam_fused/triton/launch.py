"""A function for each kernel: grid, tile, and the buffers that the kernel writes for the next one.

Each takes a Call, which has the images of the launch. Tensors of an absent gate or pool are None. Tensors of x's size
are dense in the call's layout.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ..variants.config import MEAN_OF_POOLS
from . import backward, common, convolution_backward, forward, gradients, mlp_backward, mlp_forward
from .call import Call
from .tiles import LOOP, THREADS, Tile, mlp_tile, power_of_two, warps

SINGLE_ROW = 64  # columns of the weight in a program of a single layer's backward


def _blocks(call: Call, t: Tile) -> dict[str, Any]:
    return {"BLOCK_C": t.channels, "BLOCK_P": t.pixels, **call.launch(t.warps)}


def channel_pool(call: Call, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Partial sums, maxima and argmax, (images, splits, C)."""
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


def channel_gate(
    call: Call,
    pooled: tuple[Any, ...],
    w1: Tensor | None,
    b1: Tensor | None,
    w2: Tensor | None,
    b2: Tensor | None,
    saved: Tensor,
    index: Tensor,
) -> None:
    """pooled: the result of channel_pool. w1 None: a single layer."""
    t = mlp_tile(call.C, call.R, call.wide, call.warp_size)
    chunk = LOOP * t.channels if call.single else call.C
    parts, splits = triton.cdiv(call.C, chunk), (pooled[0] if call.avg else pooled[1]).shape[1]
    sizes = (call.first, splits, parts, chunk, call.C, call.R, call.P, call.saved_size, call.index_size)
    options = {"MEAN_OF_POOLS": bool(call.switches & MEAN_OF_POOLS), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    mlp_forward.cbam_fwd_channel_gate[(call.images * parts,)](
        *pooled, w1, b1, w2, b2, saved, index, *sizes, **call.mlp, **options, **call.launch(t.warps)
    )


def spatial_pool(call: Call, x: Tensor, saved: Tensor, index: Tensor) -> None:
    t = call.tile("channels")
    sizes = (call.first, call.C, call.P, call.saved_size, call.index_size)
    options = {"POOLS": call.pools, "EVEN": call.even, **call.layout, **_blocks(call, t)}
    forward.cbam_fwd_spatial_pool[(call.images * triton.cdiv(call.P, t.pixels),)](x, saved, index, *sizes, **options)


def apply(
    call: Call,
    saved: Tensor,
    ws: Tensor | None = None,
    bs: Tensor | None = None,
    *,
    s: Tensor | None = None,
    x: Tensor | None = None,
    residual: Tensor | None = None,
    y: Tensor | None = None,
    relu: bool = False,
) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = 1 if y is None else triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.H, call.W, call.saved_size)
    options = {"POOLS": call.pools, **call.hard, "K": call.K, "RELU": relu, "CHUNK": chunk}
    forward.cbam_fwd_apply[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        x, residual, ws, bs, saved, s, y, *sizes, **options, **call.layout, **_blocks(call, t)
    )


def products(
    call: Call,
    x: Tensor,
    dy: Tensor,
    y: Tensor | None,
    masked: Tensor | None,
    saved: Tensor,
    s: Tensor | None,
    ds: Tensor | None,
) -> Tensor | None:
    """Sums of s x dy over the pixels of each tile, (images, tiles, C); None without a channel gate.

    ds, (images, P), gets the sums of g x dy over channels; None without a spatial gate.
    """
    t = call.tile("channels")
    tiles = triton.cdiv(call.P, t.pixels)
    dg_sums = saved.new_empty((call.images, tiles, call.C)) if call.channel else None
    sizes = (call.first, call.C, call.P, call.saved_size)
    options = {"POOLS": call.pools, **call.hard, **call.layout, **_blocks(call, t)}
    backward.cbam_bwd_products[(call.images * tiles,)](x, dy, y, masked, saved, s, ds, dg_sums, *sizes, **options)
    return dg_sums


def join(call: Call, parts: Tensor, sums: Tensor) -> None:
    """Sum of parts, (images, rows, C), over the rows, into sums, (images, C)."""
    channels = min(THREADS, power_of_two(call.C))
    options = {"BLOCK_C": channels, **call.launch(warps(mlp_backward.ROWS.value * channels, 4, call.warp_size))}
    grid = (call.images * triton.cdiv(call.C, channels),)
    mlp_backward.cbam_bwd_join[grid](parts, sums, parts.shape[1], call.C, **options)


def spatial_gate_backward(
    call: Call, dlogits: Tensor, saved: Tensor, index: Tensor, ws: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the two maps, (images, 2, P); partial sums of those of ws and bs, (images, tiles, 2 K K + 1)."""
    taps, values = common.TAPS.value, 4 if call.wide else 8
    pixels = min(values * THREADS // taps, power_of_two(call.P))
    tiles = triton.cdiv(call.P, pixels)
    dmaps = saved.new_empty((call.images, 2, call.P))
    dconv = saved.new_empty((call.images, tiles, call.conv_size))
    sizes = (call.first, call.C, call.H, call.W, call.saved_size, call.index_size)
    options = {"K": call.K, "BLOCK_P": pixels, **call.launch(warps(taps * pixels, values, call.warp_size))}
    convolution_backward.cbam_bwd_spatial_gate[(call.images * tiles,)](
        dlogits, saved, index, ws, dmaps, dconv, *sizes, EVEN=call.even, **options
    )
    return dmaps, dconv


def map_products(call: Call, x: Tensor, dmaps: Tensor, saved: Tensor, index: Tensor) -> Tensor:
    """Partial sums of dg through the two maps, (images, splits, C)."""
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
    call: Call,
    dg_sums: Tensor | None,
    map_sums: Tensor | None,
    dconv: Tensor | None,
    w1: Tensor | None,
    w2: Tensor | None,
    saved: Tensor,
    index: Tensor,
    partial: Tensor,
) -> Tensor | None:
    """Gradients of the pools, (images, pools, C). partial: see mlp_backward.py."""
    t = mlp_tile(call.C, min(call.R, SINGLE_ROW) if call.single else call.R, call.wide, call.warp_size)
    parts = triton.cdiv(call.R, t.pixels) if call.single else 1
    dpools = saved.new_empty((call.images, call.pools, call.C)) if call.channel else None
    rows = (0 if parts is None else parts.shape[1] for parts in (dg_sums, map_sums, dconv))
    sizes = (call.first, parts, *rows, call.C, call.R, call.P, call.saved_size, call.index_size, call.partial_size)
    blocks = {"BLOCK_K": min(128, power_of_two(call.conv_size)), "BLOCK_C": t.channels, "BLOCK_R": t.pixels}
    mlp_backward.cbam_bwd_channel_gate[(call.images * parts,)](
        *(dg_sums, map_sums, dconv, w1, w2, saved, index, partial, dpools),
        *sizes,
        MAX=call.max,
        K=call.K,
        **call.mlp,
        **blocks,
        **call.launch(t.warps),
    )
    return dpools


def input_gradient(
    call: Call,
    dy: Tensor | None,
    x: Tensor,
    saved: Tensor,
    s: Tensor | None,
    index: Tensor,
    dmaps: Tensor | None,
    dpools: Tensor | None,
    dx: Tensor,
) -> None:
    t = call.tile("none")
    chunk = LOOP * t.channels
    splits = triton.cdiv(call.C, chunk)
    sizes = (call.first, splits, call.C, call.P, call.saved_size, call.index_size)
    options = {"POOLS": call.pools, "MAX": call.max, "CHUNK": chunk, **call.layout, **_blocks(call, t)}
    backward.cbam_bwd_input[(call.images * triton.cdiv(call.P, t.pixels) * splits,)](
        dy, x if call.even else None, saved, s, index, dmaps, dpools, dx, *sizes, **options
    )


def parameter_gradients(call: Call, partial: Tensor, saved: Tensor, grads: list[Tensor | None]) -> None:
    """Write grads: of w1, w2, ws, b1, b2, bs, contiguous. None: absent, as are w1 and b1 of a single layer."""
    channels, hidden, conv = min(32, power_of_two(call.C)), min(16, power_of_two(call.R)), call.conv_size
    blocks = {"BLOCK_N": 8, "BLOCK_K": min(128, power_of_two(conv)), "BLOCK_C": channels, "BLOCK_R": hidden}
    tiles = triton.cdiv(call.C, channels) * triton.cdiv(call.R, hidden)
    conv_tiles = triton.cdiv(conv, blocks["BLOCK_K"]) if call.K else 0
    sizes = (call.N, call.C, call.R, call.saved_size, call.partial_size)
    options = {"TERMS": call.terms, "GATES": call.gates, "K": call.K, **call.launch(THREADS // call.warp_size)}
    gradients.cbam_bwd_parameters[(tiles + conv_tiles,)](partial, saved, *grads, *sizes, **blocks, **options)
