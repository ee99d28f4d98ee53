"""The channel gate's small MLP, forward and backward, one program an image; and joining without it.

It joins the partial results of the pass before it, and then reads w1 and w2 once: for C channels and R hidden units
2 C R numbers an image, from L2 after the first image. The R hidden values stay in registers, C goes by in tiles.
"""

import triton
import triton.language as tl

from .common import index_of, later_max, saved_of

ROWS = tl.constexpr(4)  # of partial results, that are added side by side


@triton.jit
def relu(value):
    return tl.where(value < 0, 0, value)


@triton.jit(do_not_specialize=["first", "splits"])
def channel_gate(
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
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """g = sigmoid(w2 (relu(w1 mean + b1) + relu(w1 max + b1)) + 2 b2): the second layer is linear."""
    image = tl.program_id(0).to(tl.int64)
    row = saved_of(saved, first + image, C, R, P)
    index = index_of(index, first + image, C, P)
    ACC = saved.dtype.element_ty
    r = tl.arange(0, BLOCK_R)
    from_mean = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    from_max = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        total = tl.zeros([BLOCK_C], ACC)
        top = tl.full([BLOCK_C], float("-inf"), ACC)
        place = tl.zeros([BLOCK_C], tl.int32)
        for split in range(0, splits):
            at = (image * splits + split) * C + c
            total += tl.load(sums + at, c < C, 0)
            top, place = later_max(top, place, tl.load(maxima + at, c < C, 0), tl.load(argmaxima + at, c < C, 0))
        mean = total / P
        tl.store(row + c, mean, c < C)
        tl.store(row + C + c, top, c < C)
        tl.store(index + c, place, c < C)
        w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
        from_mean += w * mean[None, :]
        from_max += w * top[None, :]
    bias = tl.zeros([BLOCK_R], ACC)
    if b1 is not None:
        bias = tl.load(b1 + r, r < R, 0)
    hidden_mean = relu(tl.sum(from_mean, 1) + bias)
    hidden_max = relu(tl.sum(from_max, 1) + bias)
    tl.store(row + 3 * C + r, hidden_mean, r < R)
    tl.store(row + 3 * C + R + r, hidden_max, r < R)
    # Lanes beyond R have met only weights of 0, but 0 times Inf is NaN.
    hidden = tl.where(r < R, hidden_mean + hidden_max, 0)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
        logit = tl.sum(w * hidden[None, :], 1)
        if b2 is not None:
            logit += 2 * tl.load(b2 + c, c < C, 0)
        tl.store(row + 2 * C + c, tl.sigmoid(logit), c < C)


@triton.jit
def sum_rows(rows, count, stride, column, inside, ACC: tl.constexpr):
    """Sums down count rows for the given columns."""
    total = tl.zeros([ROWS, column.shape[0]], ACC)
    for r0 in range(0, count, ROWS):
        r = r0 + tl.arange(0, ROWS)
        total += tl.load(rows + r[:, None] * stride + column[None, :], (r < count)[:, None] & inside[None, :], 0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows"])
def join(parts, sums, rows, C, BLOCK_C: tl.constexpr):
    """Sums over the rows of parts, (images, rows, C): (images, C)."""
    tiles = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    total = sum_rows(parts + image * rows * C, rows, C, c, c < C, sums.dtype.element_ty)
    tl.store(sums + image * C + c, total, c < C)


@triton.jit(do_not_specialize=["first", "direct_rows", "map_rows", "conv_rows"])
def channel_gate_backward(
    direct,
    through_maps,
    dconv,
    w1,
    w2,
    saved,
    partial,
    dpools,
    first,
    direct_rows,
    map_rows,
    conv_rows,
    C,
    R,
    P,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dg, and what it becomes before the sigmoid, in the hidden layer and at the two pools.

    partial, (N, C + 2 R + 2 K K + 1), takes this image's dlogit, dhidden_mean, dhidden_max, dws and dbs; dpools,
    (images, 2, C), what every element and what the maximum of a channel gets. Without w1 there is only dconv to join,
    without dconv and through_maps only the MLP.
    """
    image = tl.program_id(0).to(tl.int64)
    row = saved_of(saved, first + image, C, R, P)
    partial += (first + image) * (C + 2 * R + 2 * K * K + 1)
    ACC = saved.dtype.element_ty
    if w1 is not None:
        direct += image * direct_rows * C
        if through_maps is not None:
            through_maps += image * map_rows * C
        dpools += image * 2 * C
        r = tl.arange(0, BLOCK_R)
        dhidden = tl.zeros([BLOCK_C, BLOCK_R], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            dg = sum_rows(direct, direct_rows, C, c, c < C, ACC)
            if through_maps is not None:
                dg += sum_rows(through_maps, map_rows, C, c, c < C, ACC)
            g = tl.load(row + 2 * C + c, c < C, 0)
            dlogit = dg * g * (1 - g)
            tl.store(partial + c, dlogit, c < C)
            w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
            dhidden += w * dlogit[:, None]
        dhidden = tl.sum(dhidden, 0)
        dhidden_mean = tl.where(tl.load(row + 3 * C + r, r < R, 0) <= 0, 0, dhidden)
        dhidden_max = tl.where(tl.load(row + 3 * C + R + r, r < R, 0) <= 0, 0, dhidden)
        tl.store(partial + C + r, dhidden_mean, r < R)
        tl.store(partial + C + R + r, dhidden_max, r < R)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
            tl.store(dpools + c, tl.sum(w * dhidden_mean[:, None], 0) / P, c < C)
            tl.store(dpools + C + c, tl.sum(w * dhidden_max[:, None], 0), c < C)
    if dconv is not None:
        dconv += image * conv_rows * (2 * K * K + 1)
        for t0 in range(0, 2 * K * K + 1, BLOCK_K):
            t = t0 + tl.arange(0, BLOCK_K)
            inside = t < 2 * K * K + 1
            tl.store(partial + C + 2 * R + t, sum_rows(dconv, conv_rows, 2 * K * K + 1, t, inside, ACC), inside)
