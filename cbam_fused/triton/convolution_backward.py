"""The backward of the spatial convolution, between the first two passes of the backward over x."""

import triton
import triton.language as tl

from .common import TAPS, maps_of, neighbours, pixel_index_of, wait_for_launch


@triton.jit(do_not_specialize=["first"])
def cbam_bwd_spatial_gate(
    dlogits,
    saved,
    index,
    ws,
    dmaps,
    dconv,
    first,
    C,
    H,
    W,
    saved_size,
    index_size,
    EVEN: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """From dlogits, (images, P): gradients of the two maps, and partial sums of the gradients of ws and bs.

    dmaps, (images, 2, P): the gradients of g x through the mean and at the argmax; EVEN: at each tied element.
    dconv, (images, tiles, 2 K K + 1): the gradients of ws and bs from each tile of pixels.
    """
    wait_for_launch(PDL)
    P = H * W
    tiles = tl.cdiv(P, BLOCK_P)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    maps = maps_of(saved, first + image, saved_size, P)
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
        maximum = tl.load(maps + P + q, inside, 0)
        tl.store(dconv + t, tl.sum(mean * dz[None, :], 1), t < K * K)
        tl.store(dconv + K * K + t, tl.sum(maximum * dz[None, :], 1), t < K * K)
        # The transposed convolution is a convolution with the window rotated by 180 degrees.
        turned = K * K - 1 - t
        dzq = tl.load(dlogits + q, inside, 0)
        dmean += tl.load(ws + turned, t < K * K, 0)[:, None] * dzq
        dmax += tl.load(ws + K * K + turned, t < K * K, 0)[:, None] * dzq
    tl.store(dmaps + p, tl.sum(dmean, 0) / C, p < P)
    total = tl.sum(dmax, 0)
    if EVEN:
        total /= tl.load(pixel_index_of(index, first + image, index_size, P) + p, p < P, 1).to(ACC)
    tl.store(dmaps + P + p, total, p < P)
