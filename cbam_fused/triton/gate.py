"""The channel gate's small MLP, forward and backward; and joining without it.

It joins the partial results of the pass before it, and then reads w1 and w2 once: for C channels and R hidden units
2 C R numbers an image, from L2 after the first image. One program has an image, whose R hidden values stay in
registers, and C goes by in tiles. A single layer has no w1, R = C, the pools in the place of the hidden values, and
several programs an image, each of which joins on its own.
"""

import triton
import triton.language as tl

from .common import gate_of, later_max, through_gate, wait_for_launch

ROWS = tl.constexpr(4)  # of partial results, that are added side by side
RELU, LEAKY_RELU, SILU, GELU = (tl.constexpr(i) for i in range(4))  # in the order of variants/config.py
ROOT_HALF, PEAK = tl.constexpr(0.7071067811865476), tl.constexpr(0.3989422804014327)  # 1 / sqrt(2), 1 / sqrt(2 pi)


@triton.jit
def activate(value, ACT: tl.constexpr):
    if ACT == RELU:
        return tl.where(value < 0, 0, value)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, value, value * 0.01)
    elif ACT == SILU:
        return value / (1 + tl.exp(-value))
    else:
        return value * (0.5 * (1 + tl.erf(value * ROOT_HALF)))


@triton.jit
def through_activation(value, gradient, ACT: tl.constexpr):
    """The gradient behind the activation of value, taken before it."""
    if ACT == RELU:
        return tl.where(value <= 0, 0, gradient)
    elif ACT == LEAKY_RELU:
        return tl.where(value > 0, gradient, gradient * 0.01)
    elif ACT == SILU:
        s = 1 / (1 + tl.exp(-value))
        return gradient * (s * (1 + value * (1 - s)))
    else:
        cdf = 0.5 * (1 + tl.erf(value * ROOT_HALF))
        return gradient * (cdf + value * (tl.exp(value * value * -0.5) * PEAK))


@triton.jit
def image_and_part(parts, w1):
    """Of a program, which of the parts of an image it has; only a single layer has several."""
    if w1 is None:
        return (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    else:
        return tl.program_id(0).to(tl.int64), 0


@triton.jit
def join_pools(
    sums,
    maxima,
    argmaxima,
    image,
    splits,
    row,
    index,
    c,
    inside,
    store,
    C,
    P,
    ACC: tl.constexpr,
    MEAN_OF_POOLS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Of the channels c of an image, the two pools, of one alone twice; where store says, into saved and index, too."""
    mean = tl.zeros([c.shape[0]], ACC)
    top = tl.full([c.shape[0]], float("-inf"), ACC)
    place = tl.zeros([c.shape[0]], tl.int32)
    for split in range(0, splits):
        at = (image * splits + split) * C + c
        if sums is not None:
            mean += tl.load(sums + at, inside, 0)
        if maxima is not None:
            count = tl.load(argmaxima + at, inside, 0)
            top, place = later_max(top, place, tl.load(maxima + at, inside, 0), count, EVEN)
    mean /= P
    if MEAN_OF_POOLS:
        mean = (mean + top) / 2
    if sums is not None:
        tl.store(row + c, mean, store)
        row += C
    if maxima is not None:
        tl.store(row + c, top, store)
        tl.store(index + c, place, store)
    if sums is None:
        return top, top
    else:
        return mean, top


@triton.jit(do_not_specialize=["first", "splits", "parts", "chunk"])
def cbam_fwd_channel_gate(
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
    parts,
    chunk,
    C,
    R,
    P,
    saved_size,
    index_size,
    POOLS: tl.constexpr,
    TERMS: tl.constexpr,
    GATES: tl.constexpr,
    MEAN_OF_POOLS: tl.constexpr,
    ACT: tl.constexpr,
    HARD: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """g = sigmoid(w2 (act(w1 mean + b1) + act(w1 max + b1)) + 2 b2): the second layer is linear.

    TERMS 1: of one pool, or with MEAN_OF_POOLS of their mean. GATES 2: each term has a sigmoid of its own, and g is
    their sum. A program has chunk of the channels of g.
    """
    wait_for_launch(PDL)
    image, part = image_and_part(parts, w1)
    row = saved + (first + image) * saved_size
    index += (first + image) * index_size
    ACC = saved.dtype.element_ty
    hidden = row + (POOLS + 1) * C
    r = tl.arange(0, BLOCK_R)
    of_max = tl.zeros([BLOCK_R], ACC)
    if w1 is None:
        first_part = (r < R) & (part == 0)
        of_mean, top = join_pools(
            sums, maxima, argmaxima, image, splits, row, index, r, r < R, first_part, C, P, ACC, MEAN_OF_POOLS, EVEN
        )
        if TERMS == 2:
            of_max = top
        terms = hidden
    else:
        from_mean = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        from_max = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            mean, top = join_pools(
                sums, maxima, argmaxima, image, splits, row, index, c, c < C, c < C, C, P, ACC, MEAN_OF_POOLS, EVEN
            )
            w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
            from_mean += w * mean[None, :]
            if TERMS == 2:
                from_max += w * top[None, :]
        bias = tl.zeros([BLOCK_R], ACC)
        if b1 is not None:
            bias = tl.load(b1 + r, r < R, 0)
        before = tl.sum(from_mean, 1) + bias
        tl.store(hidden + r, before, r < R)
        of_mean = activate(before, ACT)
        if TERMS == 2:
            before = tl.sum(from_max, 1) + bias
            tl.store(hidden + R + r, before, r < R)
            of_max = activate(before, ACT)
        terms = hidden + TERMS * R
    if GATES == 1:
        of_mean += of_max
    # Lanes beyond R have met only weights of 0, but 0 times Inf is NaN.
    of_mean = tl.where(r < R, of_mean, 0)
    of_max = tl.where(r < R, of_max, 0)
    start = part * chunk
    for c0 in range(start, tl.minimum(start + chunk, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
        offset = tl.zeros([BLOCK_C], ACC)
        if b2 is not None:
            offset += TERMS // GATES * tl.load(b2 + c, c < C, 0)
        g = gate_of(tl.sum(w * of_mean[None, :], 1) + offset, HARD)
        if GATES == 2:
            other = gate_of(tl.sum(w * of_max[None, :], 1) + offset, HARD)
            tl.store(terms + c, g, c < C)
            tl.store(terms + C + c, other, c < C)
            g += other
        tl.store(row + POOLS * C + c, g, c < C)


@triton.jit
def sum_rows(rows, count, stride, column, inside, ACC: tl.constexpr):
    """Sums down count rows for the given columns."""
    total = tl.zeros([ROWS, column.shape[0]], ACC)
    for r0 in range(0, count, ROWS):
        r = r0 + tl.arange(0, ROWS)
        total += tl.load(rows + r[:, None] * stride + column[None, :], (r < count)[:, None] & inside[None, :], 0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows"])
def cbam_bwd_join(parts, sums, rows, C, BLOCK_C: tl.constexpr, PDL: tl.constexpr):
    """Sums over the rows of parts, (images, rows, C): (images, C)."""
    wait_for_launch(PDL)
    tiles = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    c = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    total = sum_rows(parts + image * rows * C, rows, C, c, c < C, sums.dtype.element_ty)
    tl.store(sums + image * C + c, total, c < C)


@triton.jit
def store_pool_gradients(
    dpools,
    index,
    of_mean,
    of_max,
    c,
    inside,
    C,
    P,
    POOLS: tl.constexpr,
    MAX: tl.constexpr,
    TERMS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """From the gradients of the terms: what every element of the channels c gets, and what their maxima get."""
    if TERMS == 1:
        of_mean /= POOLS
        of_max = of_mean
    if POOLS > MAX:
        tl.store(dpools + c, of_mean / P, inside)
    if MAX:
        if EVEN:
            of_max /= tl.load(index + c, inside, 1).to(of_max.dtype)
        tl.store(dpools + (POOLS - 1) * C + c, of_max, inside)


@triton.jit(do_not_specialize=["first", "parts", "direct_rows", "map_rows", "conv_rows"])
def cbam_bwd_channel_gate(
    direct,
    through_maps,
    dconv,
    w1,
    w2,
    saved,
    index,
    partial,
    dpools,
    first,
    parts,
    direct_rows,
    map_rows,
    conv_rows,
    C,
    R,
    P,
    saved_size,
    index_size,
    partial_size,
    POOLS: tl.constexpr,
    MAX: tl.constexpr,
    TERMS: tl.constexpr,
    GATES: tl.constexpr,
    ACT: tl.constexpr,
    HARD: tl.constexpr,
    EVEN: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """dg, and what it becomes before the sigmoid, in the hidden layer and at the pools.

    partial, (N, partial_size), takes of this image: dlogit (GATES, C), hidden (GATES, R), what the second layer had,
    dhidden (TERMS, R), but for a single layer, dws and dbs, 2 K K + 1. dpools, (images, POOLS, C): what every element
    and what the maximum of a channel gets, EVEN: each of the maxima. Without w2 there is only dconv to join, without
    dconv and through_maps only the MLP. A program has BLOCK_R of the hidden values, all of them unless a single layer.
    """
    wait_for_launch(PDL)
    image, part = image_and_part(parts, w1)
    n = first + image
    row = saved + n * saved_size
    partial += n * partial_size
    ACC = saved.dtype.element_ty
    if w2 is not None:
        direct += image * direct_rows * C
        if through_maps is not None:
            through_maps += image * map_rows * C
        dpools += image * POOLS * C
        index += n * index_size
        hidden = row + (POOLS + 1) * C
        terms = hidden if w1 is None else hidden + TERMS * R
        r = part * BLOCK_R + tl.arange(0, BLOCK_R)
        from_mean = tl.zeros([BLOCK_C, BLOCK_R], ACC)
        from_max = tl.zeros([BLOCK_C, BLOCK_R], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            dg = sum_rows(direct, direct_rows, C, c, c < C, ACC)
            if through_maps is not None:
                dg += sum_rows(through_maps, map_rows, C, c, c < C, ACC)
            w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
            value = tl.load((row + POOLS * C if GATES == 1 else terms) + c, c < C, 0)
            dlogit = through_gate(value, dg, HARD)
            tl.store(partial + c, dlogit, (c < C) & (part == 0))
            from_mean += w * dlogit[:, None]
            if GATES == 2:
                dlogit = through_gate(tl.load(terms + C + c, c < C, 0), dg, HARD)
                tl.store(partial + C + c, dlogit, (c < C) & (part == 0))
                from_max += w * dlogit[:, None]
        of_mean = tl.sum(from_mean, 0)
        of_max = of_mean
        if GATES == 2:
            of_max = tl.sum(from_max, 0)
        # The first term, and the second one; row has the pools, of which a single layer is.
        seen = row if w1 is None else hidden
        first_seen = tl.load(seen + r, r < R, 0)
        second_seen = tl.zeros([BLOCK_R], ACC)
        if TERMS == 2:
            second_seen = tl.load(seen + R + r, r < R, 0)
        if w1 is not None:
            of_mean = through_activation(first_seen, of_mean, ACT)
            first_seen = activate(first_seen, ACT)
            dhidden = partial + GATES * (C + R) + r
            tl.store(dhidden, of_mean, r < R)
            if TERMS == 2:
                of_max = through_activation(second_seen, of_max, ACT)
                second_seen = activate(second_seen, ACT)
                tl.store(dhidden + R, of_max, r < R)
        if GATES == 2:
            tl.store(partial + GATES * C + R + r, second_seen, r < R)
        else:
            first_seen += second_seen
        tl.store(partial + GATES * C + r, first_seen, r < R)
        if w1 is None:
            store_pool_gradients(dpools, index, of_mean, of_max, r, r < R, C, P, POOLS, MAX, TERMS, EVEN)
        else:
            for c0 in range(0, C, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
                dmean = tl.sum(w * of_mean[:, None], 0)
                dmax = dmean
                if TERMS == 2:
                    dmax = tl.sum(w * of_max[:, None], 0)
                store_pool_gradients(dpools, index, dmean, dmax, c, c < C, C, P, POOLS, MAX, TERMS, EVEN)
    if dconv is not None:
        dconv += image * conv_rows * (2 * K * K + 1)
        for t0 in range(0, 2 * K * K + 1, BLOCK_K):
            t = t0 + tl.arange(0, BLOCK_K)
            inside = t < 2 * K * K + 1
            total = sum_rows(dconv, conv_rows, 2 * K * K + 1, t, inside, ACC)
            tl.store(partial + partial_size - (2 * K * K + 1) + t, total, inside & (part == 0))
