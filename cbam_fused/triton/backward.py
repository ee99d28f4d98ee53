"""The three large passes of the backward, and between the first two the small backward of the spatial gate.

products reads x and dy (behind a ReLU also y, and writes the masked dy), map_products reads x, input_gradient reads dy
and writes dx: 2 reads of x, 2 of dy, 1 write. A program of products serves a tile of pixels and all channels, one of
map_products a tile of channels and a run of pixels, one of input_gradient a tile of pixels and a run of channels.
What goes to the maxima reaches distinct places, by comparison with index, so nothing is added atomically. The operator
products is the first pass, backward_gates the rest; with one gate alone there is no map_products.
"""

import triton
import triton.language as tl

from .common import TAPS, aligned, image_of, index_of, neighbours, places, saved_of, spatial_gate_of


@triton.jit(do_not_specialize=["first"])
def products(
    x,
    dy,
    y,
    masked,
    saved,
    s,
    ds,
    over_pixels,
    first,
    C,
    R,
    P,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums of g x dy over the channels, (images, P), and of s x dy over each tile of pixels, (images, tiles, C).

    Without s it is that of saved, and ds, the first, is taken on through its sigmoid. With y, dy is set to 0 where the
    ReLU did so, and written to masked.
    """
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
    row = saved_of(saved, n, C, R, P)
    over_pixels += tl.program_id(0).to(tl.int64) * C

    ACC = saved.dtype.element_ty
    gate = tl.load(spatial_gate_of(s, saved, n, C, R, P) + p, p < P, 0)
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = places(c, p, C, P, CHANNELS_LAST)
        g = tl.load(row + 2 * C + c, c < C, 0)
        gradient = tl.load(dy + at, inside, 0)
        if y is not None:
            gradient = tl.where(tl.load(y + at, inside, 0).to(ACC) <= 0, 0, gradient)
            tl.store(masked + at, gradient, inside)
        product = tl.load(x + at, inside, 0).to(ACC) * gradient.to(ACC)
        total += g[:, None] * product
        tl.store(over_pixels + c, tl.sum(gate[None, :] * product, 1), c < C)
    gradient_of_s = tl.sum(total, 0)
    if s is None:
        gradient_of_s *= gate * (1 - gate)
    tl.store(ds + image * P + p, gradient_of_s, p < P)


@triton.jit(do_not_specialize=["first"])
def spatial_gate_backward(
    dlogits,
    saved,
    ws,
    dmaps,
    dconv,
    first,
    C,
    R,
    H,
    W,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """From dlogits, (images, P): gradients of the two maps and, for each tile of pixels, of ws and bs.

    dmaps: (images, 2, P), the gradients of g x from the mean and at the maximum. dconv: (images, tiles, 2 K K + 1).
    """
    P = H * W
    tiles = tl.cdiv(P, BLOCK_P)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    maps = saved_of(saved, first + image, C, R, P) + 3 * C + 2 * R
    dlogits += image * P
    dmaps += image * 2 * P
    dconv += tl.program_id(0).to(tl.int64) * (2 * K * K + 1)

    ACC = saved.dtype.element_ty
    dz = tl.load(dlogits + p, p < P, 0)
    tl.store(dconv + 2 * K * K, tl.sum(dz, 0))
    dmean = tl.zeros([TAPS, BLOCK_P], ACC)
    dmax = tl.zeros([TAPS, BLOCK_P], ACC)
    for t0 in range(0, K * K, TAPS):
        t = t0 + tl.arange(0, TAPS)
        q, inside = neighbours(p, t, H, W, K)
        mean = tl.load(maps + q, inside, 0)
        top = tl.load(maps + P + q, inside, 0)
        tl.store(dconv + t, tl.sum(mean * dz[None, :], 1), t < K * K)
        tl.store(dconv + K * K + t, tl.sum(top * dz[None, :], 1), t < K * K)
        # What the window gave a pixel comes back through the window turned by half a circle.
        turned = K * K - 1 - t
        dzq = tl.load(dlogits + q, inside, 0)
        dmean += tl.load(ws + turned, t < K * K, 0)[:, None] * dzq
        dmax += tl.load(ws + K * K + turned, t < K * K, 0)[:, None] * dzq
    tl.store(dmaps + p, tl.sum(dmean, 0) / C, p < P)
    tl.store(dmaps + P + p, tl.sum(dmax, 0), p < P)


@triton.jit(do_not_specialize=["first", "splits"])
def map_products(
    x,
    dmaps,
    index,
    sums,
    first,
    splits,
    C,
    P,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums over CHUNK pixels of x times the gradient of g x through the two maps: (images, splits, C)."""
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
    argmax = index_of(index, n, C, P) + C
    dmaps += image * 2 * P

    ACC = sums.dtype.element_ty
    total = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    start = split * CHUNK
    for p0 in range(start, tl.minimum(start + CHUNK, P), BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        inside = (c < C)[:, None] & (p < P)[None, :]
        dmean = tl.load(dmaps + p, p < P, 0)
        dmax = tl.load(dmaps + P + p, p < P, 0)
        at_max = tl.load(argmax + p, p < P, 0)[None, :] == c[:, None]
        value = tl.load(x + places(c, p, C, P, CHANNELS_LAST), inside, 0).to(ACC)
        total += value * (dmean[None, :] + tl.where(at_max, dmax[None, :], 0))
    tl.store(sums + (image * splits + split) * C + c, tl.sum(total, 1), c < C)


@triton.jit(do_not_specialize=["first", "splits"])
def input_gradient(
    dy,
    saved,
    s,
    index,
    dmaps,
    dpools,
    dx,
    first,
    splits,
    C,
    R,
    P,
    CHUNK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx = (dy s + dmean_c + [c is the pixel's maximum] dmax_c) g + dmean_hw + [p is the channel's maximum] dmax_hw.

    Without dy, dmaps or dpools, their terms are 0. Without s it is that of saved.
    """
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
    row = saved_of(saved, n, C, R, P)
    index = index_of(index, n, C, P)

    ACC = saved.dtype.element_ty
    if dy is not None:
        dy = image_of(dy, n, C, P)
        gate = tl.load(spatial_gate_of(s, saved, n, C, R, P) + p, p < P, 0)
    if dmaps is not None:
        dmaps += image * 2 * P
        dmean_c = tl.load(dmaps + p, p < P, 0)
        dmax_c = tl.load(dmaps + P + p, p < P, 0)
        argmax_c = tl.load(index + C + p, p < P, 0)
    if dpools is not None:
        dpools += image * 2 * C
    start = split * CHUNK
    for c0 in range(start, tl.minimum(start + CHUNK, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        at = places(c, p, C, P, CHANNELS_LAST)
        g = tl.load(row + 2 * C + c, c < C, 0)
        value = tl.zeros([BLOCK_C, BLOCK_P], ACC)
        if dy is not None:
            value += tl.load(dy + at, inside, 0).to(ACC) * gate[None, :]
        if dmaps is not None:
            value += dmean_c[None, :]
            value += tl.where(argmax_c[None, :] == c[:, None], dmax_c[None, :], 0)
        value *= g[:, None]
        if dpools is not None:
            dmean_hw = tl.load(dpools + c, c < C, 0)
            dmax_hw = tl.load(dpools + C + c, c < C, 0)
            argmax_hw = tl.load(index + c, c < C, 0)
            value += dmean_hw[:, None]
            value += tl.where(argmax_hw[:, None] == p[None, :], dmax_hw[:, None], 0)
        tl.store(dx + at, value.to(dx.dtype.element_ty), inside)
