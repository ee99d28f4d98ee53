// The convolution of the spatial gate for a part of an image's pixels, and its gradients. The maps are in shared
// memory. Neighbouring threads share pixels, each with rows of the window of its own: small maps then still feed all
// threads.
#pragma once

#include "reduce.cuh"

namespace cbam::cuda {

constexpr int kWindowLanes = 8;  // threads that share pixels
constexpr int kTaps = 7;         // of a row of the window, that a thread takes at a time

// For each pixel of the part the sums over its window: visit(A, weight of the mean's map, of the maximum's, pixel
// there). turned: the window is turned by half a circle, as what it gave a pixel comes back. finish(pixel, A).
template <class A, bool turned, class Visit, class Finish>
__device__ __forceinline__ void convolve(const Problem& p, Part pixels, const float* window, Visit visit,
                                         Finish finish) {
    const int H = int(p.H), W = int(p.W), k = int(p.k), kk = k * k;
    constexpr int kGroups = kOnChipThreads / kWindowLanes;
    const int lane = int(threadIdx.x) % kWindowLanes, group = int(threadIdx.x) / kWindowLanes;
    for (int first = pixels.first; first < pixels.last; first += kGroups * kBatch) {
        const int q0 = first + group;  // and every kGroups-th from there: so the rows of a warp's windows keep apart
        A a[kBatch] = {};
        for (int row = lane; row < k; row += kWindowLanes) {
            for (int b0 = 0; b0 < k; b0 += kTaps) {
                float of_mean[kTaps], of_most[kTaps];
#pragma unroll
                for (int b = 0; b < kTaps; ++b) {
                    const int tap = row * k + b0 + b, at = turned ? kk - 1 - tap : tap;
                    of_mean[b] = b0 + b < k ? window[at] : 0;
                    of_most[b] = b0 + b < k ? window[kk + at] : 0;
                }
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    const int q = q0 + i * kGroups, h = q / W + row - k / 2, left = q % W - k / 2 + b0;
                    if (q >= pixels.last || h < 0 || h >= H) continue;
#pragma unroll
                    for (int b = 0; b < kTaps; ++b)
                        if (b0 + b < k && left + b >= 0 && left + b < W)
                            visit(a[i], of_mean[b], of_most[b], h * W + left + b);
                }
            }
        }
        const A mine = merge_lanes(a, kWindowLanes);
        const int of_mine = q0 + lane * kGroups;
        if (lane < kBatch && of_mine < pixels.last) finish(of_mine, mine);
    }
}

// Two sums of the same window.
struct Pair {
    float mean = 0, most = 0;
};

__device__ __forceinline__ Pair merge(Pair a, Pair b) { return {a.mean + b.mean, a.most + b.most}; }
__device__ __forceinline__ Pair from_lane(Pair v, int step) {
    return {from_lane(v.mean, step), from_lane(v.most, step)};
}

// Sums over the part's pixels of dz times both maps at each offset of the window and, the last, of dz alone: into taps,
// map_slices rows of 2 k k + 1.
__device__ __forceinline__ void window_sums(const Problem& p, const OnChip& o, Part pixels, const float* dz,
                                            const float* mean, const float* most, float* taps) {
    const int H = int(p.H), W = int(p.W), k = int(p.k), runs = (k + kTaps - 1) / kTaps;
    const int count = pixels.last - pixels.first, lane = int(threadIdx.x) % kWarp;
    for (int task = int(threadIdx.x) / kWarp; task < o.map_slices * 2 * k * runs; task += kOnChipThreads / kWarp) {
        const int b0 = task % runs * kTaps, row = task / runs % (2 * k), slice = task / runs / (2 * k);
        const float* map = row < k ? mean : most;
        const int down = row % k - k / 2;
        float sum[kTaps] = {}, total = 0;
        const int last = pixels.first + count * (slice + 1) / o.map_slices;
#pragma unroll 2
        for (int q = pixels.first + count * slice / o.map_slices + lane; q < last; q += kWarp) {
            const int h = q / W + down, left = q % W - k / 2 + b0;
            const float d = dz[q];
            total += d;
            const float* of_row = map + h * W + left;
            const bool in_rows = h >= 0 && h < H;
#pragma unroll
            for (int b = 0; b < kTaps; ++b)
                if (in_rows && b0 + b < k && left + b >= 0 && left + b < W) sum[b] += d * of_row[b];
        }
        float* out = taps + slice * (2 * k * k + 1);
#pragma unroll
        for (int b = 0; b < kTaps; ++b) {
            const float all = warp_sum(sum[b]);
            if (lane == 0 && b0 + b < k) out[row * k + b0 + b] = all;
        }
        total = warp_sum(total);
        if (lane == 0 && row == 0 && b0 == 0) out[2 * k * k] = total;
    }
}

}  // namespace cbam::cuda
