"""The three passes of the forward over x. mlp_forward.cbam_fwd_channel_gate runs between the first and the second.

Each pass reads x once, and the last one writes y: 3 reads and 1 write of x's size. The second and third read from L2 if
the images of a launch fit in it. A program processes a tile of one image:

- channel_pool: a tile of channels, CHUNK pixels; channel_gate reduces its partial results.
- spatial_pool: a tile of pixels, all channels.
- apply: a tile of pixels, CHUNK channels. Its convolution reads neighbouring pixels of the two maps.

The convolution in apply is the end of the operator gates_forward, the rest is the operator apply_gates. An absent gate
is 1.
"""

import triton
import triton.language as tl

from .activations import sigmoid
from .common import (
    TAPS,
    aligned,
    image_of,
    maps_of,
    neighbours,
    offsets,
    pixel_index_of,
    reduce_max,
    spatial_gate_of,
    update_max,
    wait_for_launch,
)


@triton.jit(do_not_specialize=["first", "splits"])
def cbam_fwd_channel_pool(
    x,
    sums,
    maxima,
    argmax,
    first,
    splits,
    C,
    P,
    ACC: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sum, maximum and argmax of each channel over CHUNK pixels: three (images, splits, C) tensors.

    sums None: no sums. maxima None: no maxima. EVEN: argmax counts the tied elements.
    """
    wait_for_launch(PDL)
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(C, BLOCK_C)
    split = tl.program_id(0) % splits
    image = (tl.program_id(0) // splits // tiles).to(tl.int64)
    c = tl.program_id(0) // splits % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    x = image_of(x, first + image, C, P)

    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    maximum = tl.full([BLOCK_C, BLOCK_P], float("-inf"), ACC)
    start = split * CHUNK
    index = tl.zeros([BLOCK_C, BLOCK_P], tl.int32)
    if not EVEN:
        index += start
    for p0 in range(start, tl.minimum(start + CHUNK, P), BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        inside = (c < C)[:, None] & (p < P)[None, :]
        value = tl.load(x + offsets(c, p, C, P, CHANNELS_LAST), inside, 0).to(ACC)
        if sums is not None:
            total += value
        if maxima is not None:
            at = inside.to(tl.int32) if EVEN else p[None, :]
            maximum, index = update_max(maximum, index, tl.where(inside, value, float("-inf")), at, EVEN)
    if maxima is not None:
        maximum, index = reduce_max(maximum, index, 1, EVEN)
    at = (image * splits + split) * C + c
    if sums is not None:
        tl.store(sums + at, tl.sum(total, 1), c < C)
    if maxima is not None:
        tl.store(maxima + at, maximum, c < C)
        tl.store(argmax + at, index, c < C)


@triton.jit(do_not_specialize=["first"])
def cbam_fwd_spatial_pool(
    x,
    saved,
    index,
    first,
    C,
    P,
    saved_size,
    index_size,
    POOLS: tl.constexpr,
    EVEN: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """Mean, maximum and argmax of g x over the channels of each pixel, into saved and index.

    POOLS 0: g is 1. EVEN: index gets the count of the tied elements.
    """
    wait_for_launch(PDL)
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(P, BLOCK_P)
    n = first + (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    x = image_of(x, n, C, P)
    maps = maps_of(saved, n, saved_size, P)
    gate = saved + n * saved_size + POOLS * C

    ACC = saved.dtype.element_ty
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    maximum = tl.full([BLOCK_C, BLOCK_P], float("-inf"), ACC)
    argmax = tl.zeros([BLOCK_C, BLOCK_P], tl.int32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        value = tl.load(x + offsets(c, p, C, P, CHANNELS_LAST), inside, 0).to(ACC)
        if POOLS:
            value *= tl.load(gate + c, c < C, 0)[:, None]
        total += value
        at = inside.to(tl.int32) if EVEN else c[:, None]
        maximum, argmax = update_max(maximum, argmax, tl.where(inside, value, float("-inf")), at, EVEN)
    maximum, argmax = reduce_max(maximum, argmax, 0, EVEN)
    tl.store(maps + p, tl.sum(total, 0) / C, p < P)
    tl.store(maps + P + p, maximum, p < P)
    tl.store(pixel_index_of(index, n, index_size, P) + p, argmax, p < P)


@triton.jit(do_not_specialize=["first", "splits"])
def cbam_fwd_apply(
    x,
    residual,
    ws,
    bs,
    saved,
    s,
    y,
    first,
    splits,
    C,
    H,
    W,
    saved_size,
    POOLS: tl.constexpr,
    HARD: tl.constexpr,
    K: tl.constexpr,
    RELU: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """y = relu(x g s + residual) for CHUNK channels. POOLS 0: g is 1. ws and s None: s is 1.

    With ws, s = sigmoid(conv([mean_c; max_c]) + bs) is computed first and stored in saved. HARD: the hard sigmoid.
    y None: only the convolution runs, and its result is stored in saved without the sigmoid.
    """
    wait_for_launch(PDL)
    P = H * W
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(P, BLOCK_P)
    split = tl.program_id(0) % splits
    n = first + (tl.program_id(0) // splits // tiles).to(tl.int64)
    p = tl.program_id(0) // splits % tiles * BLOCK_P + tl.arange(0, BLOCK_P)

    ACC = saved.dtype.element_ty
    spatial = spatial_gate_of(s, saved, n, saved_size, P) + p
    if ws is not None:
        maps = maps_of(saved, n, saved_size, P)
        z = tl.zeros([TAPS, BLOCK_P], ACC)
        for t0 in range(0, K * K, TAPS):
            t = t0 + tl.arange(0, TAPS)
            q, inside = neighbours(p, t, H, W, K)
            z += tl.load(maps + q, inside, 0) * tl.load(ws + t, t < K * K, 0)[:, None]
            z += tl.load(maps + P + q, inside, 0) * tl.load(ws + K * K + t, t < K * K, 0)[:, None]
        gate = tl.sum(z, 0)
        if bs is not None:
            gate += tl.load(bs)
        if y is not None:
            gate = sigmoid(gate, HARD)
        tl.store(spatial, gate, (p < P) & (split == 0))
    elif s is not None:
        gate = tl.load(spatial, p < P, 0)

    if y is not None:
        x = image_of(x, n, C, P)
        y = image_of(y, n, C, P)
        if residual is not None:
            residual = image_of(residual, n, C, P)
        start = split * CHUNK
        for c0 in range(start, tl.minimum(start + CHUNK, C), BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            inside = (c < C)[:, None] & (p < P)[None, :]
            at = offsets(c, p, C, P, CHANNELS_LAST)
            value = tl.load(x + at, inside, 0).to(ACC)
            if POOLS:
                value *= tl.load(saved + n * saved_size + POOLS * C + c, c < C, 0)[:, None]
            if ws is not None or s is not None:
                value *= gate[None, :]
            if residual is not None:
                value += tl.load(residual + at, inside, 0).to(ACC)
            if RELU:
                value = tl.where(value < 0, 0, value)
            tl.store(y + at, value.to(y.dtype.element_ty), inside)
