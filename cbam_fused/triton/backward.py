"""The three passes of the backward over x and dy. convolution_backward.py and mlp_backward.py run between them.

- products reads x and dy. With a ReLU it also reads y and writes the masked dy. A program has a tile of pixels and all
  channels.
- map_products reads x. A program has a tile of channels and CHUNK pixels. With one gate alone it does not run.
- input reads dy and writes dx. A program has a tile of pixels and CHUNK channels. With even ties it also reads x.

So x and dy are read twice each and dx is written once. The gradient of a maximum is added at its argmax, which is in
index, or, with even ties, where x or g x equals the maximum. Every program compares, so no sum is atomic. The operator
gate_grads is the first pass, backward_from_gate_grads the rest.
"""

import triton
import triton.language as tl

from .activations import sigmoid_backward
from .common import (
    aligned,
    image_of,
    maps_of,
    offsets,
    pixel_index_of,
    spatial_gate_of,
    wait_for_launch,
)


@triton.jit(do_not_specialize=["first"])
def cbam_bwd_products(
    x,
    dy,
    y,
    masked,
    saved,
    s,
    ds,
    dg_sums,
    first,
    C,
    P,
    saved_size,
    POOLS: tl.constexpr,
    HARD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """ds: sums of g x dy over channels, (images, P). dg_sums: sums of s x dy over each tile, (images, tiles, C).

    POOLS 0: g is 1 and has no dg_sums. ds None: s is 1. s None: the s in saved, and ds gets the gradient before the
    sigmoid. With y, dy becomes 0 where y <= 0 and is written to masked.
    """
    wait_for_launch(PDL)
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(P, BLOCK_P)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    n = first + image
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    x = image_of(x, n, C, P)
    dy = image_of(dy, n, C, P)
    if y is not None:
        y = image_of(y, n, C, P)
        masked = image_of(masked, n, C, P)
    ACC = saved.dtype.element_ty
    if POOLS:
        dg_sums += tl.program_id(0).to(tl.int64) * C
    if ds is not None:
        gate = tl.load(spatial_gate_of(s, saved, n, saved_size, P) + p, p < P, 0)
        total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = offsets(c, p, C, P, CHANNELS_LAST)
        gradient = tl.load(dy + at, inside, 0)
        if y is not None:
            gradient = tl.where(tl.load(y + at, inside, 0).to(ACC) <= 0, 0, gradient)
            tl.store(masked + at, gradient, inside)
        product = tl.load(x + at, inside, 0).to(ACC) * gradient.to(ACC)
        if ds is not None:
            if POOLS:
                g = tl.load(saved + n * saved_size + POOLS * C + c, c < C, 0)
                total += g[:, None] * product
                product *= gate[None, :]
            else:
                total += product
        if POOLS:
            tl.store(dg_sums + c, tl.sum(product, 1), c < C)
    if ds is not None:
        gradient_of_s = tl.sum(total, 0)
        if s is None:
            gradient_of_s = sigmoid_backward(gate, gradient_of_s, HARD)
        tl.store(ds + image * P + p, gradient_of_s, p < P)


@triton.jit(do_not_specialize=["first", "splits"])
def cbam_bwd_map_products(
    x,
    dmaps,
    saved,
    index,
    map_sums,
    first,
    splits,
    C,
    P,
    saved_size,
    index_size,
    POOLS: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """Partial sums of dg through the two maps, (images, splits, C): x times the gradient of g x, over CHUNK pixels."""
    wait_for_launch(PDL)
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(C, BLOCK_C)
    split = tl.program_id(0) % splits
    image = (tl.program_id(0) // splits // tiles).to(tl.int64)
    n = first + image
    c = tl.program_id(0) // splits % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    x = image_of(x, n, C, P)
    argmax = pixel_index_of(index, n, index_size, P)
    dmaps += image * 2 * P
    if EVEN:
        g = tl.load(saved + n * saved_size + POOLS * C + c, c < C, 0)
        maxima = maps_of(saved, n, saved_size, P) + P

    ACC = map_sums.dtype.element_ty
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    start = split * CHUNK
    for p0 in range(start, tl.minimum(start + CHUNK, P), BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        inside = (c < C)[:, None] & (p < P)[None, :]
        dmean = tl.load(dmaps + p, p < P, 0)
        dmax = tl.load(dmaps + P + p, p < P, 0)
        value = tl.load(x + offsets(c, p, C, P, CHANNELS_LAST), inside, 0).to(ACC)
        if EVEN:
            # Multiplied, not selected: as in PyTorch, 0 times Inf is NaN where the element is no maximum.
            at_max = (value * g[:, None] == tl.load(maxima + p, p < P, 0)[None, :]).to(ACC)
            total += value * (dmean[None, :] + at_max * dmax[None, :])
        else:
            at_max = tl.load(argmax + p, p < P, 0)[None, :] == c[:, None]
            total += value * (dmean[None, :] + tl.where(at_max, dmax[None, :], 0))
    tl.store(map_sums + (image * splits + split) * C + c, tl.sum(total, 1), c < C)


@triton.jit(do_not_specialize=["first", "splits"])
def cbam_bwd_input(
    dy,
    x,
    saved,
    s,
    index,
    dmaps,
    dpools,
    dx,
    first,
    splits,
    C,
    P,
    saved_size,
    index_size,
    POOLS: tl.constexpr,
    MAX: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """dx = (dy s + dmean_c + [c is the pixel's argmax] dmax_c) g + dmean_hw + [p is the channel's argmax] dmax_hw.

    The terms of an absent dy, dmaps or dpools are 0. dmaps None: s is 1. dpools None, POOLS 0: g is 1. MAX: the last
    row of dpools is that of the maximum. s None: the s in saved. x is given for even ties: each element that equals the
    maximum gets the gradient, not only the argmax.
    """
    wait_for_launch(PDL)
    if CHANNELS_LAST:
        C = aligned(C, ALIGN)
    else:
        P = aligned(P, ALIGN)
    tiles = tl.cdiv(P, BLOCK_P)
    split = tl.program_id(0) % splits
    image = (tl.program_id(0) // splits // tiles).to(tl.int64)
    n = first + image
    p = tl.program_id(0) // splits % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    dx = image_of(dx, n, C, P)
    row = saved + n * saved_size

    ACC = saved.dtype.element_ty
    if dy is not None:
        dy = image_of(dy, n, C, P)
        if dmaps is not None:
            gate = tl.load(spatial_gate_of(s, saved, n, saved_size, P) + p, p < P, 0)
    if x is not None:
        x = image_of(x, n, C, P)
    if dmaps is not None:
        dmaps += image * 2 * P
        dmean_c = tl.load(dmaps + p, p < P, 0)
        dmax_c = tl.load(dmaps + P + p, p < P, 0)
        if x is not None:
            max_c = tl.load(maps_of(saved, n, saved_size, P) + P + p, p < P, 0)
        else:
            argmax_c = tl.load(pixel_index_of(index, n, index_size, P) + p, p < P, 0)
    if POOLS:
        dpools += image * POOLS * C
    start = split * CHUNK
    for c0 in range(start, tl.minimum(start + CHUNK, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = offsets(c, p, C, P, CHANNELS_LAST)
        value = tl.zeros([BLOCK_C, BLOCK_P], ACC)
        if x is not None:
            given = tl.load(x + at, inside, 0).to(ACC)
            gated = given
        if POOLS and (dy is not None or dmaps is not None):
            g = tl.load(row + POOLS * C + c, c < C, 0)
            if x is not None:
                gated = given * g[:, None]
        if dy is not None:
            gradient = tl.load(dy + at, inside, 0).to(ACC)
            if dmaps is not None:
                gradient *= gate[None, :]
            value += gradient
        if dmaps is not None:
            value += dmean_c[None, :]
            if x is not None:
                value += (gated == max_c[None, :]).to(ACC) * dmax_c[None, :]
            else:
                value += tl.where(argmax_c[None, :] == c[:, None], dmax_c[None, :], 0)
        if POOLS and (dy is not None or dmaps is not None):
            value *= g[:, None]
        if POOLS > MAX:
            value += tl.load(dpools + c, c < C, 0)[:, None]
        if MAX:
            dmax_hw = tl.load(dpools + (POOLS - 1) * C + c, c < C, 0)
            if x is not None:
                max_hw = tl.load(row + (POOLS - 1) * C + c, c < C, 0)
                value += (given == max_hw[:, None]).to(ACC) * dmax_hw[:, None]
            else:
                argmax_hw = tl.load(index + n * index_size + c, c < C, 0)
                value += tl.where(argmax_hw[:, None] == p[None, :], dmax_hw[:, None], 0)
        tl.store(dx + at, value.to(dx.dtype.element_ty), inside)
