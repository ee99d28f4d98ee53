// The convolution of the spatial gate for a part of an image's pixels, and its gradients. The maps are in shared
// memory. Neighbouring threads share a pixel, each with rows of the window of its own: small maps then still feed all
// threads.
#pragma once

#include "on_chip.cuh"

namespace cbam::cuda {

constexpr int kWindowLanes = 8;  // threads that share a pixel
constexpr int kTaps = 7;         // of a row of the window, that a warp sums over the pixels at a time

// The window around pixel q: visit(A&, offset in the window, pixel there) where that is inside the image.
template <class A, class Visit>
__device__ __forceinline__ void window_row(A& a, int q, int row, int H, int W, int k, Visit visit) {
    const int h = q / W + row - k / 2, left = q % W - k / 2;
    if (h < 0 || h >= H) return;
    for (int b = max(0, -left); b < min(k, W - left); ++b) visit(a, row * k + b, h * W + left + b);
}

// finish(pixel, A) for each pixel of the part.
template <class A, class Visit, class Finish>
__device__ __forceinline__ void convolve(const Problem& p, Part pixels, Visit visit, Finish finish) {
    const int H = int(p.H), W = int(p.W), k = int(p.k);
    reduce_rows<A, 1>(
        pixels.last - pixels.first, k, kWindowLanes,
        [&](A& a, int i, int row) { window_row(a, pixels.first + i, row, H, W, k, visit); },
        [&](int i, const A& a) { finish(pixels.first + i, a); });
}

// Two sums of the same window.
struct Pair {
    float mean = 0, most = 0;

    __device__ __forceinline__ void add(const Pair& other) { mean += other.mean, most += other.most; }
    __device__ __forceinline__ Pair from_lane(int step) const {
        return {__shfl_xor_sync(0xffffffffu, mean, step), __shfl_xor_sync(0xffffffffu, most, step)};
    }
};

// Sums over the part's pixels of dz times both maps at each offset of the window and, the last, of dz alone: into taps,
// map_slices rows of 2 k k + 1. map(i, pixel) gives the mean's (0) or the maximum's (1).
template <class Map> __device__ __forceinline__ void window_sums(const Problem& p, const OnChip& o, Part pixels,
                                                                 const float* dz, float* taps, Map map) {
    const int H = int(p.H), W = int(p.W), k = int(p.k), runs = (k + kTaps - 1) / kTaps;
    const int count = pixels.last - pixels.first, lane = int(threadIdx.x) % kWarp;
    for (int task = int(threadIdx.x) / kWarp; task < o.map_slices * 2 * k * runs; task += kOnChipThreads / kWarp) {
        const int b0 = task % runs * kTaps, row = task / runs % (2 * k), slice = task / runs / (2 * k);
        float sum[kTaps] = {}, total = 0;
        const int last = pixels.first + count * (slice + 1) / o.map_slices;
        for (int q = pixels.first + count * slice / o.map_slices + lane; q < last; q += kWarp) {
            const int h = q / W + row % k - k / 2, left = q % W - k / 2 + b0;
            const float d = dz[q];
            total += d;
            if (h < 0 || h >= H) continue;
#pragma unroll
            for (int b = 0; b < kTaps; ++b)
                if (b0 + b < k && left + b >= 0 && left + b < W) sum[b] += d * map(row / k, h * W + left + b);
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
