// The convolution of the spatial gate for the block's range of pixels, and its gradients. The maps are in shared
// memory. kWsLanes lanes share pixels and split the rows of ws, so that small maps have work for all threads.
#pragma once

#include "block.cuh"

namespace cbam::cuda {

constexpr int kWsLanes = 8;  // lanes that share pixels
constexpr int kTaps = 7;     // columns of ws that a thread takes at a time

template <class Block> __device__ __forceinline__ void load_ws(const Block& b) {
    for (int i = int(threadIdx.x); b.p.ws && i < 2 * b.kk; i += kOnChipThreads)
        b.ws[i] = static_cast<const float*>(b.p.ws)[b.p.tap(i)];
}

// For each pixel of the range, calls visit(A, weight of the mean map, weight of the max map, neighbour) for its k x k
// neighbours, then finish(pixel, A). turned: ws is rotated by 180 degrees, for the gradient of the maps.
template <class A, bool turned, class Block, class Visit, class Finish>
__device__ __forceinline__ void convolve(const Block& block, Visit visit, Finish finish) {
    const int H = int(block.p.H), W = int(block.p.W), k = int(block.p.k), kk = k * k;
    const Range pixels = block.pixels;
    constexpr int kGroups = kOnChipThreads / kWsLanes;
    const int lane = int(threadIdx.x) % kWsLanes, group = int(threadIdx.x) / kWsLanes;
    for (int first = pixels.first; first < pixels.last; first += kGroups * kBatch) {
        const int q0 = first + group;  // and every kGroups-th pixel after it, so that a warp has neighbouring pixels
        A a[kBatch] = {};
        for (int row = lane; row < k; row += kWsLanes) {
            for (int b0 = 0; b0 < k; b0 += kTaps) {
                float of_mean[kTaps], of_max[kTaps];
#pragma unroll
                for (int b = 0; b < kTaps; ++b) {
                    const int tap = row * k + b0 + b, at = turned ? kk - 1 - tap : tap;
                    of_mean[b] = b0 + b < k ? block.ws[at] : 0;
                    of_max[b] = b0 + b < k ? block.ws[kk + at] : 0;
                }
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    const int q = q0 + i * kGroups, h = q / W + row - k / 2, left = q % W - k / 2 + b0;
                    if (q >= pixels.last || h < 0 || h >= H) continue;
#pragma unroll
                    for (int b = 0; b < kTaps; ++b)
                        if (b0 + b < k && left + b >= 0 && left + b < W)
                            visit(a[i], of_mean[b], of_max[b], h * W + left + b);
                }
            }
        }
        const A mine = merge_lanes(a, kWsLanes);
        const int of_mine = q0 + lane * kGroups;
        if (lane < kBatch && of_mine < pixels.last) finish(of_mine, mine);
    }
}

// The gradients of both maps at a pixel.
struct Pair {
    float mean = 0, max = 0;
};

__device__ __forceinline__ Pair merge(Pair a, Pair b) { return {a.mean + b.mean, a.max + b.max}; }
__device__ __forceinline__ Pair from_lane(Pair v, int step) {
    return {from_lane(v.mean, step), from_lane(v.max, step)};
}

// Partial sums of dws and dbs over the range's pixels: dz times both maps at each offset and, last, dz. Writes
// ws_partials, (ws_slices, 2 k k + 1). A warp has a slice of the pixels and kTaps offsets of a row of ws.
template <class Block> __device__ __forceinline__ void sum_ws_gradient(const Block& block, const float* dz) {
    const int H = int(block.p.H), W = int(block.p.W), k = int(block.p.k), runs = (k + kTaps - 1) / kTaps;
    const int slices = block.o.ws_slices, first = block.pixels.first, count = block.pixels.last - first;
    const int lane = int(threadIdx.x) % kWarp;
    for (int task = int(threadIdx.x) / kWarp; task < slices * 2 * k * runs; task += kOnChipThreads / kWarp) {
        const int b0 = task % runs * kTaps, row = task / runs % (2 * k), slice = task / runs / (2 * k);
        const float* map = row < k ? block.pixel.mean : block.pixel.max;
        const int down = row % k - k / 2;
        float sum[kTaps] = {}, total = 0;
        const int last = first + count * (slice + 1) / slices;
#pragma unroll 2
        for (int q = first + count * slice / slices + lane; q < last; q += kWarp) {
            const int h = q / W + down, left = q % W - k / 2 + b0;
            const float d = dz[q];
            total += d;
            const float* of_row = map + h * W + left;
#pragma unroll
            for (int b = 0; b < kTaps; ++b)
                if (h >= 0 && h < H && b0 + b < k && left + b >= 0 && left + b < W) sum[b] += d * of_row[b];
        }
        float* out = block.ws_partials + slice * (2 * k * k + 1);
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
