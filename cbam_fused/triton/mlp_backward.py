"""The backward of the channel gate: reduces partial sums, then runs the backward of the MLP."""

import triton
import triton.language as tl

from .activations import activation, activation_backward, sigmoid_backward
from .common import wait_for_launch
from .mlp_forward import image_and_part

ROWS = tl.constexpr(4)  # rows of partial sums in one tile


@triton.jit
def sum_rows(rows, count, stride, column, inside, ACC: tl.constexpr):
    """Sum over count rows of the given columns."""
    total = tl.zeros([ROWS, column.shape[0]], ACC)
    for r0 in range(0, count, ROWS):
        r = r0 + tl.arange(0, ROWS)
        total += tl.load(rows + r[:, None] * stride + column[None, :], (r < count)[:, None] & inside[None, :], 0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["rows"])
def cbam_bwd_join(parts, sums, rows, C, BLOCK_C: tl.constexpr, PDL: tl.constexpr):
    """Sum of parts, (images, rows, C), over the rows, into sums, (images, C)."""
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
    dmean,
    dmax,
    c,
    inside,
    C,
    P,
    POOLS: tl.constexpr,
    MAX: tl.constexpr,
    TERMS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Gradients of x in the channels c, through the mean and at the argmax; EVEN: at each tied element."""
    if TERMS == 1:
        dmean /= POOLS
        dmax = dmean
    if POOLS > MAX:
        tl.store(dpools + c, dmean / P, inside)
    if MAX:
        if EVEN:
            dmax /= tl.load(index + c, inside, 1).to(dmax.dtype)
        tl.store(dpools + (POOLS - 1) * C + c, dmax, inside)


@triton.jit(do_not_specialize=["first", "parts", "dg_rows", "map_rows", "conv_rows"])
def cbam_bwd_channel_gate(
    dg_sums,
    map_sums,
    dconv,
    w1,
    w2,
    saved,
    index,
    partial,
    dpools,
    first,
    parts,
    dg_rows,
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
    """From the partial sums of dg: the gradients of the logits, the hidden layer and the pools.

    A row of partial, (N, partial_size), gets: dlogit (GATES, C); hidden (GATES, R), the input of the second layer;
    dhidden (TERMS, R), unless a single layer; dws and dbs, 2 K K + 1. dpools, (images, POOLS, C), gets the gradients of
    x through the mean and at the argmax. w2 None: only dconv is reduced. dconv None: no dws and dbs. map_sums None: g
    has no gradient through the maps. A program has BLOCK_R hidden units: all of them, except with a single layer.
    """
    wait_for_launch(PDL)
    image, part = image_and_part(parts, w1)
    n = first + image
    row = saved + n * saved_size
    partial += n * partial_size
    ACC = saved.dtype.element_ty
    if w2 is not None:
        dg_sums += image * dg_rows * C
        if map_sums is not None:
            map_sums += image * map_rows * C
        dpools += image * POOLS * C
        index += n * index_size
        hidden = row + (POOLS + 1) * C
        terms = hidden if w1 is None else hidden + TERMS * R
        r = part * BLOCK_R + tl.arange(0, BLOCK_R)
        from_mean = tl.zeros([BLOCK_C, BLOCK_R], ACC)
        from_max = tl.zeros([BLOCK_C, BLOCK_R], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            dg = sum_rows(dg_sums, dg_rows, C, c, c < C, ACC)
            if map_sums is not None:
                dg += sum_rows(map_sums, map_rows, C, c, c < C, ACC)
            w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
            value = tl.load((row + POOLS * C if GATES == 1 else terms) + c, c < C, 0)
            dlogit = sigmoid_backward(value, dg, HARD)
            tl.store(partial + c, dlogit, (c < C) & (part == 0))
            from_mean += w * dlogit[:, None]
            if GATES == 2:
                dlogit = sigmoid_backward(tl.load(terms + C + c, c < C, 0), dg, HARD)
                tl.store(partial + C + c, dlogit, (c < C) & (part == 0))
                from_max += w * dlogit[:, None]
        dhidden_mean = tl.sum(from_mean, 0)
        dhidden_max = dhidden_mean
        if GATES == 2:
            dhidden_max = tl.sum(from_max, 0)
        # Inputs of the last layer before the activation; those of a single layer are the pools.
        inputs = row if w1 is None else hidden
        hidden_mean = tl.load(inputs + r, r < R, 0)
        hidden_max = tl.zeros([BLOCK_R], ACC)
        if TERMS == 2:
            hidden_max = tl.load(inputs + R + r, r < R, 0)
        if w1 is not None:
            dhidden_mean = activation_backward(hidden_mean, dhidden_mean, ACT)
            hidden_mean = activation(hidden_mean, ACT)
            dhidden = partial + GATES * (C + R) + r
            tl.store(dhidden, dhidden_mean, r < R)
            if TERMS == 2:
                dhidden_max = activation_backward(hidden_max, dhidden_max, ACT)
                hidden_max = activation(hidden_max, ACT)
                tl.store(dhidden + R, dhidden_max, r < R)
        if GATES == 2:
            tl.store(partial + GATES * C + R + r, hidden_max, r < R)
        else:
            hidden_mean += hidden_max
        tl.store(partial + GATES * C + r, hidden_mean, r < R)
        if w1 is None:
            store_pool_gradients(dpools, index, dhidden_mean, dhidden_max, r, r < R, C, P, POOLS, MAX, TERMS, EVEN)
        else:
            for c0 in range(0, C, BLOCK_C):
                c = c0 + tl.arange(0, BLOCK_C)
                w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
                dmean = tl.sum(w * dhidden_mean[:, None], 0)
                dmax = dmean
                if TERMS == 2:
                    dmax = tl.sum(w * dhidden_max[:, None], 0)
                store_pool_gradients(dpools, index, dmean, dmax, c, c < C, C, P, POOLS, MAX, TERMS, EVEN)
    if dconv is not None:
        dconv += image * conv_rows * (2 * K * K + 1)
        for t0 in range(0, 2 * K * K + 1, BLOCK_K):
            t = t0 + tl.arange(0, BLOCK_K)
            inside = t < 2 * K * K + 1
            total = sum_rows(dconv, conv_rows, 2 * K * K + 1, t, inside, ACC)
            tl.store(partial + partial_size - (2 * K * K + 1) + t, total, inside & (part == 0))
