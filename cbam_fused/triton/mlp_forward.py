"""The channel gate: the MLP, and before it the joining of the pools.

It joins the partial results of the pass before it, and then reads w1 and w2 once: for C channels and R hidden units
2 C R numbers an image, from L2 after the first image. One program has an image, whose R hidden values stay in
registers, and C goes by in tiles. A single layer has no w1, R = C, the pools in the place of the hidden values, and
several programs an image, each of which joins on its own.
"""

import triton
import triton.language as tl

from .activations import activate, gate_of
from .common import later_max, wait_for_launch


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
