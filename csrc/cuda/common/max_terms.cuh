// Sums of terms by key, in a fixed order. The key of a pixel is its argmax over the channels. An image has C times
// fewer keys than elements, and no pass over x has to compare indices.
#pragma once

#include "device.cuh"

namespace cbam::cuda {

// Returns, in the first lane of those with its key, the sum of v over these lanes: a tree in lane order.
template <class F> __device__ __forceinline__ F sum_of_peers(unsigned peers, F v) {
    const unsigned lane = threadIdx.x % kWarp, up_to_lane = (2u << lane) - 1;
    unsigned others = peers & ~up_to_lane;  // lanes that this lane has not added yet
    int rank = __popc(peers & (up_to_lane >> 1));
    while (__ballot_sync(~0u, others != 0)) {
        const int next = __ffs(others);
        const F v_of_next = __shfl_sync(~0u, v, (next + kWarp - 1) % kWarp);
        if (next) v += v_of_next;
        others &= __ballot_sync(~0u, rank % 2 == 0);  // odd ranks have been added
        rank /= 2;
    }
    return v;
}

// Adds term(p) to sums[key(p)] for p in [first, last). One warp calls it; it takes kWarp consecutive p every ``step``.
// Terms with a negative key are skipped.
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
