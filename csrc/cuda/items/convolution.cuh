// The k x k convolution of the spatial gate for a run of pixels, and its transpose.
//
// kWindowLanes lanes share kBatch pixels; each has other rows of the window. A step takes kRound pixels, kWindowLanes
// rows and kTaps columns of the window. Shared memory holds a segment of the map for each of these rows, so its size
// depends on neither the map nor k.
#pragma once

#include "../common/device.cuh"
#include "../common/launcher.h"

namespace cbam::cuda {

constexpr int kWindowLanes = 8;  // lanes that share pixels, and rows of the window in shared memory
constexpr int kTaps = 7;         // columns of the window in shared memory
constexpr int kWindowGroups = kThreads / kWindowLanes;
constexpr int kRound = kWindowGroups * kBatch;
// Stride of the segments: kRound + kTaps - 1 and padding, so that the lanes' segments begin in different banks.
template <class F> constexpr int kSegment = kRound + (sizeof(F) == 8 ? 10 : 12);
template <class F> constexpr int kWindow = kWindowLanes * kSegment<F>;  // values in shared memory, per map
constexpr int kWeights = kWindowLanes * kTaps;                          // per map
// Shared memory of convolve, in bytes.
template <class F> constexpr size_t window_bytes(int maps) { return (maps * kWindow<F> + 2 * kWeights) * sizeof(F); }

template <class F> struct Pair {
    F mean = 0, max = 0;
};

template <class F> __device__ __forceinline__ Pair<F> merge(Pair<F> a, Pair<F> b) {
    return {a.mean + b.mean, a.max + b.max};
}
template <class F> __device__ __forceinline__ Pair<F> from_lane(Pair<F> v, int step) {
    return {from_lane(v.mean, step), from_lane(v.max, step)};
}

// For each pixel in [first, last), calls visit(A, weights of both maps, values of the maps) for each element of its
// window, then finish(pixel, A). turned: the window is rotated by 180 degrees, for the transposed convolution. A null
// map is all zeros.
template <class A, bool turned, int maps, class F, class Visit, class Finish>
__device__ __forceinline__ void convolve(const F* const (&map)[maps], const Problem& p, int first, int last, F* shared,
                                         Visit visit, Finish finish) {
    const int H = p.H, W = p.W, k = p.k;
    const F* const ws = static_cast<const F*>(p.ws);
    const int lane = threadIdx.x % kWindowLanes, group = threadIdx.x / kWindowLanes, kk = k * k;
    F* const of_window = shared + maps * kWindow<F>;  // (2, kWindowLanes, kTaps)
    for (int q0 = first; q0 < last; q0 += kRound) {
        A sums[kBatch] = {};
        for (int a0 = 0; a0 < k; a0 += kWindowLanes) {
            for (int b0 = 0; b0 < k; b0 += kTaps) {
                // Offset from a pixel to the first element of its window in this step.
                const int64_t start = int64_t(a0 - k / 2) * W + b0 - k / 2;
                __syncthreads();
#pragma unroll 4
                for (int i = threadIdx.x; i < kWindow<F>; i += kThreads) {
                    const int64_t at = start + q0 + int64_t(i / kSegment<F>) * W + i % kSegment<F>;
                    const bool inside = at >= 0 && at < int64_t(H) * W && i % kSegment<F> < kRound + kTaps - 1;
#pragma unroll
                    for (int m = 0; m < maps; ++m) shared[m * kWindow<F> + i] = inside && map[m] ? map[m][at] : F(0);
                }
#pragma unroll 1
                for (int i = threadIdx.x; i < 2 * kWeights; i += kThreads) {
                    const int a = a0 + i % kWeights / kTaps, b = b0 + i % kTaps, tap = a * k + b;
                    of_window[i] = a < k && b < k ? ws[p.tap(i / kWeights, turned ? kk - 1 - tap : tap)] : F(0);
                }
                __syncthreads();
                Pair<F> weights[kTaps];
#pragma unroll
                for (int b = 0; b < kTaps; ++b)
                    weights[b] = {of_window[lane * kTaps + b], of_window[kWeights + lane * kTaps + b]};
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    const int pixel = group + i * kWindowGroups, left = (q0 + pixel) % W + b0 - k / 2;
                    const F* const segment = shared + lane * kSegment<F> + pixel;
                    F values[kTaps][maps];
#pragma unroll
                    for (int b = 0; b < kTaps; ++b)
#pragma unroll
                        for (int m = 0; m < maps; ++m) values[b][m] = segment[m * kWindow<F> + b];
#pragma unroll
                    for (int b = 0; b < kTaps; ++b)
                        // Values left or right of the map belong to another row. Values past the window may be NaN.
                        if (a0 + lane < k && b0 + b < k && left + b >= 0 && left + b < W)
                            visit(sums[i], weights[b], values[b]);
                }
            }
        }
        const A mine = merge_lanes(sums, kWindowLanes);
        const int pixel = q0 + group + lane * kWindowGroups;
        if (lane < kBatch && pixel < last) finish(pixel, mine);
    }
}

}  // namespace cbam::cuda
