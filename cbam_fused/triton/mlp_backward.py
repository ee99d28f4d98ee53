"""The backward of the channel gate: the MLP, and joining with and without it."""

import triton
import triton.language as tl

from .activations import activate, through_activation, through_gate
from .common import wait_for_launch
from .mlp_forward import image_and_part

ROWS = tl.constexpr(4)  # of partial results, that are added side by side


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
