"""The channel gate: reduces the partial results of channel_pool, then runs the MLP.

A program processes one image. It reads w1 and w2 once, 2 C R numbers for C channels and R hidden units, from L2 after
the first image. The R hidden values stay in registers; C is processed in tiles. A single layer has no w1 and R = C, and
its inputs are the pools. Several programs then share an image, and each reduces the pools.
"""

import triton
import triton.language as tl

from .activations import activation, sigmoid
from .common import update_max, wait_for_launch


@triton.jit
def image_and_part(parts, w1):
    """Image of a program, and its part of the image's channels; only a single layer (w1 None) has several parts."""
    if w1 is None:
        return (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    else:
        return tl.program_id(0).to(tl.int64), 0


@triton.jit
def reduce_pools(
    sums,
    maxima,
    argmax,
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
    """Mean and maximum of the channels c of an image. They are stored in saved and index where store is true.

    sums None: the maximum is returned instead of the mean.
    """
    mean = tl.zeros([c.shape[0]], ACC)
    maximum = tl.full([c.shape[0]], float("-inf"), ACC)
    index_of_max = tl.zeros([c.shape[0]], tl.int32)
    for split in range(0, splits):
        at = (image * splits + split) * C + c
        if sums is not None:
            mean += tl.load(sums + at, inside, 0)
        if maxima is not None:
            at_split = tl.load(argmax + at, inside, 0)
            maximum, index_of_max = update_max(maximum, index_of_max, tl.load(maxima + at, inside, 0), at_split, EVEN)
    mean /= P
    if MEAN_OF_POOLS:
        mean = (mean + maximum) / 2
    if sums is not None:
        tl.store(row + c, mean, store)
        row += C
    if maxima is not None:
        tl.store(row + c, maximum, store)
        tl.store(index + c, index_of_max, store)
    if sums is None:
        return maximum, maximum
    else:
        return mean, maximum


@triton.jit(do_not_specialize=["first", "splits", "parts", "chunk"])
def cbam_fwd_channel_gate(
    sums,
    maxima,
    argmax,
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
    """g = sigmoid(w2 (act(w1 mean + b1) + act(w1 max + b1)) + 2 b2), because the second layer is linear.

    TERMS 1: one pool, or the mean of both if MEAN_OF_POOLS. GATES 2: g is the sum of a sigmoid per term. A program
    computes chunk channels of g.
    """
    wait_for_launch(PDL)
    image, part = image_and_part(parts, w1)
    row = saved + (first + image) * saved_size
    index += (first + image) * index_size
    ACC = saved.dtype.element_ty
    hidden = row + (POOLS + 1) * C
    r = tl.arange(0, BLOCK_R)
    hidden_max = tl.zeros([BLOCK_R], ACC)
    if w1 is None:
        first_part = (r < R) & (part == 0)
        hidden_mean, maximum = reduce_pools(
            sums, maxima, argmax, image, splits, row, index, r, r < R, first_part, C, P, ACC, MEAN_OF_POOLS, EVEN
        )
        if TERMS == 2:
            hidden_max = maximum
        terms = hidden
    else:
        from_mean = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        from_max = tl.zeros([BLOCK_R, BLOCK_C], ACC)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            mean, maximum = reduce_pools(
                sums, maxima, argmax, image, splits, row, index, c, c < C, c < C, C, P, ACC, MEAN_OF_POOLS, EVEN
            )
            w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0)
            from_mean += w * mean[None, :]
            if TERMS == 2:
                from_max += w * maximum[None, :]
        bias = tl.zeros([BLOCK_R], ACC)
        if b1 is not None:
            bias = tl.load(b1 + r, r < R, 0)
        before = tl.sum(from_mean, 1) + bias
        tl.store(hidden + r, before, r < R)
        hidden_mean = activation(before, ACT)
        if TERMS == 2:
            before = tl.sum(from_max, 1) + bias
            tl.store(hidden + R + r, before, r < R)
            hidden_max = activation(before, ACT)
        terms = hidden + TERMS * R
    if GATES == 1:
        hidden_mean += hidden_max
    # The weights of lanes beyond R are 0, but 0 times Inf is NaN.
    hidden_mean = tl.where(r < R, hidden_mean, 0)
    hidden_max = tl.where(r < R, hidden_max, 0)
    start = part * chunk
    for c0 in range(start, tl.minimum(start + chunk, C), BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0)
        offset = tl.zeros([BLOCK_C], ACC)
        if b2 is not None:
            offset += TERMS // GATES * tl.load(b2 + c, c < C, 0)
        g = sigmoid(tl.sum(w * hidden_mean[None, :], 1) + offset, HARD)
        if GATES == 2:
            other = sigmoid(tl.sum(w * hidden_max[None, :], 1) + offset, HARD)
            tl.store(terms + c, g, c < C)
            tl.store(terms + C + c, other, c < C)
            g += other
        tl.store(row + POOLS * C + c, g, c < C)
