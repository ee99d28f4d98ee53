// The channel gate of an item's images, from what the tiles of the channel pool left.
//
// hidden_units: the pools, and relu(w1 mean + b1) and relu(w1 max + b1); a warp has kWarpUnits of them.
// gate_channels: g = sigmoid(w2 (hidden_mean + hidden_max) + 2 b2), since the second layer is linear; ``lanes``
// neighbours have kBatch channels.
// Reads the parts, w1, b1, w2, b2; writes all that saved and index have of the channel gate.
// Shared memory: kMlpForward numbers, the inputs of a layer. Both begin with a barrier.
#pragma once

#include "../staged_pool.cuh"
#include "mlp.cuh"

namespace cbam::cuda {

constexpr int kWarpUnits = 2;
constexpr int kHiddenRows = kWarps * kWarpUnits;
constexpr int kMlpForward = 2 * kImages * kChunk;

// What the tiles left of a channel, together.
template <class F> __device__ __forceinline__ PoolSum<F> join_pools(const Forward<F>& a, int64_t image, int c) {
    const int C = a.p.C, parts = a.parts();
    const int64_t first = image * parts * C + c;
    PoolSum<F> sum = {a.total[first], {a.max[first], a.argmax[first]}};
#pragma unroll 4
    for (int part = 1; part < parts; ++part) {
        const int64_t at = first + int64_t(part) * C;
        sum = merge(sum, PoolSum<F>{a.total[at], {a.max[at], a.argmax[at]}});
    }
    return sum;
}

// Means and maxima of ``count`` channels into shared memory, and into saved if ``saves``.
template <class F> __device__ __forceinline__ void load_pools(const Forward<F>& a, const Images& images, int c0,
                                                              int count, bool saves, F* mean, F* max) {
    for (int i = threadIdx.x; i < count; i += kThreads) {
        for (int n = 0; n < images.count; ++n) {
            const PoolSum<F> sum = join_pools(a, images.first + n, c0 + i);
            const F of_mean = sum.total / F(a.p.HW());
            mean[n * kChunk + i] = of_mean;
            max[n * kChunk + i] = sum.top.value;
            if (!saves) continue;
            const Image<F> image{a.p, images.first + n};
            image.mean_hw()[c0 + i] = of_mean;
            image.max_hw()[c0 + i] = sum.top.value;
            image.argmax_hw()[c0 + i] = sum.top.index;
        }
    }
}

template <class F> __device__ __forceinline__ void hidden_units(const Forward<F>& a, const Images& images,
                                                                int first_unit, int last_unit, F* shared) {
    const Problem& p = a.p;
    const int C = p.C, lane = threadIdx.x % kWarp;
    const F *const w1 = (const F*)p.w1, *const b1 = (const F*)p.b1;
    F *const mean = shared, *const max = mean + kImages * kChunk;
    for (int unit = first_unit; unit < last_unit; unit += kHiddenRows) {
        const int first = unit + threadIdx.x / kWarp * kWarpUnits;
        F from_mean[kWarpUnits][kImages] = {}, from_max[kWarpUnits][kImages] = {};
        for (int c0 = 0; c0 < C; c0 += kChunk) {
            const int count = min(kChunk, C - c0);
            if (unit == first_unit || C > kChunk) {
                __syncthreads();
                load_pools(a, images, c0, count, unit == 0, mean, max);
                __syncthreads();
            }
#pragma unroll 4
            for (int i = lane; i < count; i += kWarp) {
                F w[kWarpUnits];
                for (int r = 0; r < kWarpUnits; ++r)
                    w[r] = first + r < last_unit ? w1[int64_t(first + r) * C + c0 + i] : F(0);
#pragma unroll
                for (int n = 0; n < kImages; ++n) {
                    if (n >= images.count) break;
#pragma unroll
                    for (int r = 0; r < kWarpUnits; ++r) {
                        from_mean[r][n] += w[r] * mean[n * kChunk + i];
                        from_max[r][n] += w[r] * max[n * kChunk + i];
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kWarpUnits; ++r) {
            const F of_mean = merge_lanes(from_mean[r], kWarp), of_max = merge_lanes(from_max[r], kWarp);
            if (lane >= images.count || first + r >= last_unit) continue;
            const Image<F> image{p, images.first + lane};
            const F bias = b1 ? b1[first + r] : F(0);
            image.hidden_mean()[first + r] = relu(of_mean + bias);
            image.hidden_max()[first + r] = relu(of_max + bias);
        }
    }
}

// Channels of a step of gate_channels.
CBAM_ANYWHERE inline int gate_channels_at_once(int lanes) { return kThreads / lanes * kBatch; }

template <class F> __device__ __forceinline__ void gate_channels(const Forward<F>& a, const Images& images,
                                                                 int first_channel, int last_channel, F* hidden) {
    const Problem& p = a.p;
    const int R = p.R, lanes = lanes_for(R), lane = threadIdx.x % lanes, groups = kThreads / lanes;
    const F *const w2 = (const F*)p.w2, *const b2 = (const F*)p.b2;
    for (int channel = first_channel; channel < last_channel; channel += gate_channels_at_once(lanes)) {
        const int first = channel + threadIdx.x / lanes;
        F logit[kBatch][kImages] = {};
        for (int r0 = 0; r0 < R; r0 += kChunk) {
            const int count = min(kChunk, R - r0);
            if (channel == first_channel || R > kChunk) {
                __syncthreads();
                fill(hidden, images, r0, r0 + count, [&](int64_t n, int r) {
                    const Image<F> image{p, n};
                    return image.hidden_mean()[r] + image.hidden_max()[r];
                });
                __syncthreads();
            }
            for (int i = lane; i < count; i += lanes) {
                F w[kBatch];
#pragma unroll
                for (int k = 0; k < kBatch; ++k) {
                    const int c = first + k * groups;
                    w[k] = c < last_channel ? w2[int64_t(c) * R + r0 + i] : F(0);
                }
#pragma unroll
                for (int n = 0; n < kImages; ++n)
#pragma unroll
                    for (int k = 0; k < kBatch; ++k) logit[k][n] += w[k] * hidden[n * kChunk + i];
            }
        }
#pragma unroll
        for (int k = 0; k < kBatch; ++k) {
            const int c = first + k * groups;
            const F sum = merge_lanes(logit[k], lanes);
            if (lane < images.count && c < last_channel)
                Image<F>{p, images.first + lane}.g()[c] = sigmoid(b2 ? sum + 2 * b2[c] : sum);
        }
    }
}

// Without a channel gate: it is 1, all else 0.
template <class F> __device__ __forceinline__ void absent_channel_gate(const Forward<F>& a, const Images& images) {
    for (int n = 0; n < images.count; ++n) {
        const Image<F> image{a.p, images.first + n};
        for (int c = threadIdx.x; c < a.p.C; c += kThreads) {
            image.mean_hw()[c] = image.max_hw()[c] = 0;
            image.argmax_hw()[c] = 0;
            image.g()[c] = 1;
        }
    }
}

}  // namespace cbam::cuda
