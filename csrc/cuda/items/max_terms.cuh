// The gradients through the maxima over the channels, summed for each channel over the pixels whose maximum it has.
// Pixels are few beside elements, so that no pass over x has to compare places.
#pragma once

#include "../common/device.cuh"

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

// By one warp: into sums, of all channels, dmax max of the pixels first ... last - 1.
template <class F> __device__ __forceinline__ void sum_max_terms(const int32_t* argmax, const F* dmax, const F* max,
                                                                 int first, int last, F* sums, int channels) {
    const int lane = threadIdx.x % kWarp;
    for (int c = lane; c < channels; c += kWarp) sums[c] = 0;
    __syncwarp();
    for (int p0 = first; p0 < last; p0 += kWarp) {
        const int p = p0 + lane;
        const bool inside = p < last;
        const int key = inside ? argmax[p] : ~lane;
        const unsigned peers = __match_any_sync(~0u, key);
        const F sum = sum_of_peers(peers, inside ? dmax[p] * max[p] : F(0));
        if (inside && __ffs(peers) == lane + 1) sums[key] += sum;
        __syncwarp();
    }
}

}  // namespace cbam::cuda
