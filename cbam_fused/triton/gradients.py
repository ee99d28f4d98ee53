"""Gradients of the parameters: sums of partial and saved over the images, in the order of the images.

A program has a tile of dw1 and the transposed tile of dw2, as sums of outer products. The programs of the first column
of tiles also compute db1, those of the first row db2. Further programs compute dws and dbs. A launch reads
N (3 C + 3 R) numbers a few times and writes the gradients once.
"""

import triton
import triton.language as tl

from .common import wait_for_launch


@triton.jit(do_not_specialize=["N"])
def cbam_bwd_parameters(
    partial,
    saved,
    dw1,
    dw2,
    dws,
    db1,
    db2,
    dbs,
    N,
    C,
    R,
    saved_size,
    partial_size,
    TERMS: tl.constexpr,
    GATES: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """dw1 = sum of dhidden_mean mean^T + dhidden_max max^T; dw2 = sum of dlogit hidden^T over images and GATES.

    TERMS 1: one pool, or the mean of both. dw1, dw1 and dw2, or dws may be None, as may each bias.
    """
    wait_for_launch(PDL)
    ACC = saved.dtype.element_ty
    columns = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    tiles = columns * tl.cdiv(R, BLOCK_R)
    if program >= tiles:
        if dws is not None:
            t = (program - tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
            total = tl.zeros([BLOCK_N, BLOCK_K], ACC)
            for n0 in range(0, N, BLOCK_N):
                n = (n0 + tl.arange(0, BLOCK_N)).to(tl.int64)
                at = (n + 1) * partial_size - (2 * K * K + 1)
                total += tl.load(partial + at[:, None] + t[None, :], (n < N)[:, None] & (t <= 2 * K * K)[None, :], 0)
            gradient = tl.sum(total, 0)
            tl.store(dws + t, gradient, t < 2 * K * K)
            if dbs is not None:
                tl.store(dbs + t - 2 * K * K, gradient, t == 2 * K * K)
    elif dw2 is not None:
        r = program // columns * BLOCK_R + tl.arange(0, BLOCK_R)
        c = program % columns * BLOCK_C + tl.arange(0, BLOCK_C)
        first = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        second = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        dbias1 = tl.zeros([BLOCK_N, BLOCK_R], ACC)
        dbias2 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        for n0 in range(0, N, BLOCK_N):
            n = (n0 + tl.arange(0, BLOCK_N)).to(tl.int64)
            mine = partial + n[:, None] * partial_size
            in_r = (n < N)[:, None] & (r < R)[None, :]
            in_c = (n < N)[:, None] & (c < C)[None, :]
            for i in tl.static_range(GATES):
                dlogit = tl.load(mine + i * C + c[None, :], in_c, 0)
                hidden = tl.load(mine + GATES * C + i * R + r[None, :], in_r, 0)
                second += tl.sum(hidden[:, :, None] * dlogit[:, None, :], 0)
                dbias2 += dlogit
            if dw1 is not None:
                pools = saved + n[:, None] * saved_size
                for i in tl.static_range(TERMS):
                    dhidden = tl.load(mine + GATES * (C + R) + i * R + r[None, :], in_r, 0)
                    pool = tl.load(pools + i * C + c[None, :], in_c, 0)
                    first += tl.sum(dhidden[:, :, None] * pool[:, None, :], 0)
                    dbias1 += dhidden
        inside = (r < R)[:, None] & (c < C)[None, :]
        tl.store(dw2 + c[None, :] * R + r[:, None], second, inside)
        if dw1 is not None:
            tl.store(dw1 + r[:, None] * C + c[None, :], first, inside)
        if db1 is not None:
            tl.store(db1 + r, tl.sum(dbias1, 0), (r < R) & (program % columns == 0))
        if db2 is not None:
            tl.store(db2 + c, TERMS // GATES * tl.sum(dbias2, 0), (c < C) & (program < columns))
