"""Gradients of the parameters: sums over the images, in their order, of what each left in partial and saved.

A program has a tile of dw1 and the same tile, transposed, of dw2, as outer products of the images' vectors; the first
column of tiles also has db1, the first row db2; further programs have dws and dbs. It reads N (3 C + 4 R) numbers a few
times over, and writes the gradients once.
"""

import triton
import triton.language as tl

from .common import saved_of


@triton.jit(do_not_specialize=["N"])
def parameter_gradients(
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
    P,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dw1 = sum of dhidden_mean mean^T + dhidden_max max^T; dw2 = sum of dlogit (hidden_mean + hidden_max)^T.

    dw1 and dw2, or dws, may be None, and each of the biases.
    """
    ACC = saved.dtype.element_ty
    columns = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    width = C + 2 * R + 2 * K * K + 1
    tiles = columns * tl.cdiv(R, BLOCK_R)
    if program >= tiles:
        if dws is not None:
            t = (program - tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
            total = tl.zeros([BLOCK_N, BLOCK_K], ACC)
            for n0 in range(0, N, BLOCK_N):
                n = (n0 + tl.arange(0, BLOCK_N)).to(tl.int64)
                at = n * width + C + 2 * R
                total += tl.load(partial + at[:, None] + t[None, :], (n < N)[:, None] & (t <= 2 * K * K)[None, :], 0)
            gradient = tl.sum(total, 0)
            tl.store(dws + t, gradient, t < 2 * K * K)
            if dbs is not None:
                tl.store(dbs + t - 2 * K * K, gradient, t == 2 * K * K)
    elif dw1 is not None:
        r = program // columns * BLOCK_R + tl.arange(0, BLOCK_R)
        c = program % columns * BLOCK_C + tl.arange(0, BLOCK_C)
        first = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        second = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        dbias1 = tl.zeros([BLOCK_N, BLOCK_R], ACC)
        dbias2 = tl.zeros([BLOCK_N, BLOCK_C], ACC)
        for n0 in range(0, N, BLOCK_N):
            n = (n0 + tl.arange(0, BLOCK_N)).to(tl.int64)
            mine = partial + n[:, None] * width
            row = saved_of(saved, n, C, R, P)[:, None]
            in_r = (n < N)[:, None] & (r < R)[None, :]
            in_c = (n < N)[:, None] & (c < C)[None, :]
            dhidden_mean = tl.load(mine + C + r[None, :], in_r, 0)
            dhidden_max = tl.load(mine + C + R + r[None, :], in_r, 0)
            hidden = tl.load(row + 3 * C + r[None, :], in_r, 0) + tl.load(row + 3 * C + R + r[None, :], in_r, 0)
            dlogit = tl.load(mine + c[None, :], in_c, 0)
            mean = tl.load(row + c[None, :], in_c, 0)
            top = tl.load(row + C + c[None, :], in_c, 0)
            through = dhidden_mean[:, :, None] * mean[:, None, :] + dhidden_max[:, :, None] * top[:, None, :]
            first += tl.sum(through, 0)
            second += tl.sum(hidden[:, :, None] * dlogit[:, None, :], 0)
            dbias1 += dhidden_mean + dhidden_max
            dbias2 += dlogit
        inside = (r < R)[:, None] & (c < C)[None, :]
        tl.store(dw1 + r[:, None] * C + c[None, :], first, inside)
        tl.store(dw2 + c[None, :] * R + r[:, None], second, inside)
        if db1 is not None:
            tl.store(db1 + r, tl.sum(dbias1, 0), (r < R) & (program % columns == 0))
        if db2 is not None:
            tl.store(db2 + c, 2 * tl.sum(dbias2, 0), (c < C) & (program < columns))
