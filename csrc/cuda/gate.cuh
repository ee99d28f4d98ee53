// The channel gate's MLP, forward and backward. The first kernel of each joins the partial results of the pass before
// it. The weights are read once for each image, mostly from L2, by as many blocks as keep that from being the work of
// few multiprocessors: a layer is a launch.
#pragma once

#include "gates.h"

namespace cbam::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int kHiddenRows = kWarps * kBatch;  // hidden units of a block of hidden_layer
constexpr int kGateChannels = 64;             // channels of a block of channel_gate

// The pools, and relu(w1 mean + b1) and relu(w1 max + b1): a block has kHiddenRows of them, all channels go by.
template <class F> __global__ void __launch_bounds__(kThreads)
    hidden_layer(PoolParts<F> parts, const F* w1, const F* b1, Rows<F> mean_hw, Rows<F> max_hw, Rows<int32_t> argmax_hw,
                 Rows<F> hidden_mean, Rows<F> hidden_max, int C, int R, F HW) {
    CBAM_SHARED(shared);
    F *const mean = reinterpret_cast<F*>(shared), *const max = mean + kThreads;
    const unsigned blocks = (R + kHiddenRows - 1) / kHiddenRows, block = blockIdx.x % blocks;
    const int64_t image = blockIdx.x / blocks;
    const int thread = threadIdx.x, lane = thread % kWarp, first = block * kHiddenRows + thread / kWarp * kBatch;
    F from_mean[kBatch] = {}, from_max[kBatch] = {};
    for (int c0 = 0; c0 < C; c0 += kThreads) {
        const int c = c0 + thread, count = min(kThreads, C - c0);
        if (c < C) {
            const PoolSum<F> sum = parts.of(image, c, C);
            mean[thread] = sum.total / HW;
            max[thread] = sum.top.value;
            if (block == 0) {
                mean_hw.of(image)[c] = mean[thread];
                max_hw.of(image)[c] = max[thread];
                argmax_hw.of(image)[c] = sum.top.index;
            }
        }
        __syncthreads();
        for (int i = lane; i < count; i += kWarp) {
#pragma unroll
            for (int r = 0; r < kBatch; ++r) {
                if (first + r >= R) break;
                const F w = w1[int64_t(first + r) * C + c0 + i];
                from_mean[r] += w * mean[i];
                from_max[r] += w * max[i];
            }
        }
        __syncthreads();
    }
    const F of_mean = merge_lanes(from_mean, kWarp), of_max = merge_lanes(from_max, kWarp);
    const int r = first + lane;
    if (lane < kBatch && r < R) {
        const F bias = b1 ? b1[r] : F(0);
        hidden_mean.of(image)[r] = relu(of_mean + bias);
        hidden_max.of(image)[r] = relu(of_max + bias);
    }
}

// g = sigmoid(w2 (hidden_mean + hidden_max) + 2 b2): the second layer is linear. ``lanes`` neighbours have a channel.
template <class F> __global__ void __launch_bounds__(kThreads)
    channel_gate(const F* w2, const F* b2, Rows<const F> hidden_mean, Rows<const F> hidden_max, Rows<F> g, int C, int R,
                 int lanes) {
    const unsigned blocks = (C + kGateChannels - 1) / kGateChannels;
    const int64_t image = blockIdx.x / blocks;
    const int block = blockIdx.x % blocks, lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
    const F *of_mean = hidden_mean.of(image), *of_max = hidden_max.of(image);
    for (int first = 0; first < kGateChannels; first += kThreads / lanes) {
        const int c = block * kGateChannels + first + group;
        const bool inside = first + group < kGateChannels && c < C;
        F logit = 0;
        for (int r = lane; inside && r < R; r += lanes) logit += w2[int64_t(c) * R + r] * (of_mean[r] + of_max[r]);
        for (int step = lanes / 2; step; step /= 2) logit += from_lane(logit, step);
        if (inside && lane == 0) g.of(image)[c] = sigmoid(b2 ? logit + 2 * b2[c] : logit);
    }
}

// From dg and what comes to it through the maps, (parts, C) for each image: dlogit = dg g (1 - g), and the gradients
// before the ReLU. A block has ``lanes`` hidden units; its groups of so many threads share the channels.
template <class F> __global__ void __launch_bounds__(kThreads)
    hidden_backward(const F* dg, const F* through_maps, int parts, const F* w2, Rows<const F> gate,
                    Rows<const F> hidden_mean, Rows<const F> hidden_max, Rows<F> dlogit, Rows<F> dhidden_mean,
                    Rows<F> dhidden_max, Rows<F> hidden, int C, int R, int lanes) {
    CBAM_SHARED(shared);
    F *const of_channels = reinterpret_cast<F*>(shared), *const of_groups = of_channels + kThreads;
    const unsigned blocks = (R + lanes - 1) / lanes, block = blockIdx.x % blocks;
    const int64_t image = blockIdx.x / blocks;
    const int thread = threadIdx.x, groups = kThreads / lanes, r = block * lanes + thread % lanes;
    F sum = 0;
    for (int c0 = 0; c0 < C; c0 += kThreads) {
        const int c = c0 + thread, count = min(kThreads, C - c0);
        if (c < C) {
            F d = dg[image * C + c];
            for (int part = 0; part < parts; ++part) d += through_maps[(image * parts + part) * C + c];
            const F g = gate.of(image)[c];
            of_channels[thread] = d * g * (1 - g);
            if (block == 0) dlogit.of(image)[c] = of_channels[thread];
        }
        __syncthreads();
        for (int i = thread / lanes; i < count && r < R; i += groups)
            sum += w2[int64_t(c0 + i) * R + r] * of_channels[i];
        __syncthreads();
    }
    of_groups[thread] = sum;
    __syncthreads();
    if (thread >= lanes || r >= R) return;
    for (int group = 1; group < groups; ++group) sum += of_groups[group * lanes + thread];
    const F of_mean = hidden_mean.of(image)[r], of_max = hidden_max.of(image)[r];
    dhidden_mean.of(image)[r] = of_mean <= 0 ? F(0) : sum;
    dhidden_max.of(image)[r] = of_max <= 0 ? F(0) : sum;
    hidden.of(image)[r] = of_mean + of_max;
}

// The gradients of the pools, (images, 2, C): that of each element, and that of the maximum.
template <class F> __global__ void __launch_bounds__(kThreads)
    pools_backward(const F* w1, Rows<const F> dhidden_mean, Rows<const F> dhidden_max, F* dpools, int C, int R, F HW) {
    const unsigned blocks = (C + kThreads - 1) / kThreads;
    const int64_t image = blockIdx.x / blocks;
    const int c = blockIdx.x % blocks * kThreads + threadIdx.x;
    if (c >= C) return;
    const F *from_mean = dhidden_mean.of(image), *from_max = dhidden_max.of(image);
    F dmean = 0, dmax = 0;
    for (int r = 0; r < R; ++r) {
        const F w = w1[int64_t(r) * C + c];
        dmean += w * from_mean[r];
        dmax += w * from_max[r];
    }
    dpools[image * 2 * C + c] = dmean / HW;
    dpools[(image * 2 + 1) * C + c] = dmax;
}

}  // namespace cbam::cuda
