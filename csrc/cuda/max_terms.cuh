// The gradients through the maxima over the channels, summed for each channel over the pixels whose maximum it has.
// Pixels are few beside elements, so that no pass over x has to compare places.
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

// Of a block of ``warps`` and some of the channels, in shared memory. Each warp has sums of its own, and a list of
// pixels that waits until it has enough for all lanes.
template <class F, int warps> struct MaxTerms {
    static constexpr int kList = 2 * kWarp;
    F *sums, *terms;  // (warps, channels), (warps, kList)
    int* keys;        // (warps, kList)
    int channels;

    __host__ __device__ static constexpr size_t bytes(int channels) {
        return warps * (channels * sizeof(F) + kList * (sizeof(F) + sizeof(int)));
    }
    __device__ MaxTerms(void* shared, int channels)
        : sums(static_cast<F*>(shared)),
          terms(sums + warps * channels),
          keys(reinterpret_cast<int*>(terms + warps * kList)),
          channels(channels) {}

    // Takes the pixels first ... last - 1 and the channels from ``channel`` on; before the sums are read the block
    // meets.
    __device__ __forceinline__ void add(const int32_t* argmax, const F* dmax, const F* max, int first, int last,
                                        int channel) const {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        F *const of_channel = sums + warp * channels, *const list = terms + warp * kList;
        int* const list_keys = keys + warp * kList;
        for (int i = lane; i < channels; i += kWarp) of_channel[i] = 0;
        __syncwarp();
        const auto take = [&](int from, int count) {
            const int key = lane < count ? list_keys[from + lane] : ~lane;
            const F term = lane < count ? list[from + lane] : F(0);
            const unsigned peers = __match_any_sync(~0u, key);
            const F sum = sum_of_peers(peers, term);
            if (lane < count && __ffs(peers) == lane + 1) of_channel[key] += sum;
            __syncwarp();
        };
        int waiting = 0;
        for (int p0 = first + warp * kWarp; p0 < last; p0 += warps * kWarp) {
            const int p = p0 + lane, key = p < last ? argmax[p] - channel : -1;
            const bool here = unsigned(key) < unsigned(channels);
            const unsigned found = __ballot_sync(~0u, here);
            if (here) {
                const int at = waiting + __popc(found & ((1u << lane) - 1));
                list_keys[at] = key;
                list[at] = dmax[p] * max[p];
            }
            waiting += __popc(found);
            __syncwarp();
            if (waiting >= kWarp) take(waiting -= kWarp, kWarp);
        }
        if (waiting > 0) take(0, waiting);
    }
    __device__ __forceinline__ F sum(int channel) const {
        F sum = 0;
        for (int warp = 0; warp < warps; ++warp) sum += sums[warp * channels + channel];
        return sum;
    }
};

}  // namespace cbam::cuda
