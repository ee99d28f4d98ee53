// Sums of few terms by a key, in an order of their own: for each channel over the pixels whose maximum it has. Pixels
// are few beside elements, so that no pass over x has to compare places.
#pragma once

#include "device.cuh"

namespace cbam::cuda {

// Of lanes with the same key the sum of what they have, as a tree over them in order: in the first of them.
template <class F> __device__ __forceinline__ F sum_of_peers(unsigned peers, F v) {
    const unsigned lane = threadIdx.x % kWarp, up_to_lane = (2u << lane) - 1;
    unsigned others = peers & ~up_to_lane;  // that this lane has yet to add
    int rank = __popc(peers & (up_to_lane >> 1));
    while (__ballot_sync(~0u, others != 0)) {
        const int next = __ffs(others);
        const F v_of_next = __shfl_sync(~0u, v, (next + kWarp - 1) % kWarp);
        if (next) v += v_of_next;
        others &= __ballot_sync(~0u, rank % 2 == 0);  // the odd ones have been added
        rank /= 2;
    }
    return v;
}

// By one warp: adds term(p) to sums[key(p)], for p = first ... last - 1 in runs of a warp, ``step`` from one to the
// next; a negative key has no sum.
template <class F, class Key, class Term>
__device__ __forceinline__ void sum_by_key(int first, int last, int step, F* sums, Key key, Term term) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int p0 = first; p0 < last; p0 += step) {
        const int p = p0 + lane, mine = p < last ? key(p) : -1;
        const unsigned peers = __match_any_sync(~0u, mine < 0 ? ~lane : mine);
        const F sum = sum_of_peers(peers, mine < 0 ? F(0) : term(p));
        if (mine >= 0 && __ffs(peers) == lane + 1) sums[mine] += sum;
        __syncwarp();
    }
}

}  // namespace cbam::cuda
