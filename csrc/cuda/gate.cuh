// The channel gate's MLP, forward and backward. The first kernel of each joins the partial results of the pass before
// it. A block takes kImages images, so that a weight, read once from L2, serves as many; a layer is a launch, whose
// blocks share the outputs. Sums go in an order that depends on C and R alone, so an image has the same bits in every
// batch.
#pragma once

#include "gates.h"

namespace cbam::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int kImages = kBatch;  // of a block
constexpr int kChunk = 512;      // inputs that are in shared memory at a time, for each image
constexpr int kWarpUnits = 2;    // hidden units of a warp of hidden_layer
constexpr int kHiddenRows = kWarps * kWarpUnits;
constexpr int kUnitLanes = 8;  // neighbours that have kUnits of the hidden units of hidden_backward
constexpr int kUnits = kUnitLanes * kBatch;
constexpr int kUnitGroups = kThreads / kUnitLanes;
constexpr int kPoolChannels = 64;  // channels of a block of pools_backward, whose groups share the hidden units
constexpr int kPoolGroups = kThreads / kPoolChannels;

// The images of a block: ``blocks`` neighbours in the grid share them.
struct Images {
    int64_t first;
    int count;

    __device__ Images(unsigned blocks, int64_t images)
        : first(int64_t(blockIdx.x / blocks) * kImages), count(int(min(int64_t(kImages), images - first))) {}
};

// Puts of(image, i) for first <= i < last at to[n kChunk + i - first], n counting the block's images; zeros for images
// beyond. The values of all images are under way together.
template <class F, class Of>
__device__ __forceinline__ void fill(F* to, const Images& images, int first, int last, Of of) {
    for (int i = first + threadIdx.x; i < last; i += kThreads) {
        F v[kImages];
#pragma unroll
        for (int n = 0; n < kImages; ++n) v[n] = n < images.count ? of(images.first + n, i) : F(0);
#pragma unroll
        for (int n = 0; n < kImages; ++n) to[n * kChunk + i - first] = v[n];
    }
}

// The pools, and relu(w1 mean + b1) and relu(w1 max + b1): a block has kHiddenRows of them, all channels go by.
template <class F> __global__ void __launch_bounds__(kThreads, 2)
    hidden_layer(PoolParts<F> parts, const F* w1, const F* b1, Rows<F> mean_hw, Rows<F> max_hw, Rows<int32_t> argmax_hw,
                 Rows<F> hidden_mean, Rows<F> hidden_max, int64_t N, int C, int R, F HW) {
    CBAM_SHARED(shared);
    F *const mean = reinterpret_cast<F*>(shared), *const max = mean + kImages * kChunk;
    const unsigned blocks = (R + kHiddenRows - 1) / kHiddenRows, block = blockIdx.x % blocks;
    const Images images(blocks, N);
    const int lane = threadIdx.x % kWarp, first = block * kHiddenRows + threadIdx.x / kWarp * kWarpUnits;
    F from_mean[kWarpUnits][kImages] = {}, from_max[kWarpUnits][kImages] = {};
    for (int c0 = 0; c0 < C; c0 += kChunk) {
        const int count = min(kChunk, C - c0);
        for (int i = threadIdx.x; i < count; i += kThreads) {
            PoolSum<F> sum[kImages];
#pragma unroll
            for (int n = 0; n < kImages; ++n)
                if (n < images.count) sum[n] = parts.of(images.first + n, c0 + i, C);
#pragma unroll
            for (int n = 0; n < kImages; ++n) {
                if (n >= images.count) break;
                mean[n * kChunk + i] = sum[n].total / HW;
                max[n * kChunk + i] = sum[n].top.value;
                if (block > 0) continue;
                mean_hw.of(images.first + n)[c0 + i] = sum[n].total / HW;
                max_hw.of(images.first + n)[c0 + i] = sum[n].top.value;
                argmax_hw.of(images.first + n)[c0 + i] = sum[n].top.index;
            }
        }
        __syncthreads();
#pragma unroll 4
        for (int i = lane; i < count; i += kWarp) {
            F w[kWarpUnits];
            for (int r = 0; r < kWarpUnits; ++r) w[r] = first + r < R ? w1[int64_t(first + r) * C + c0 + i] : F(0);
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
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < kWarpUnits; ++r) {
        const F of_mean = merge_lanes(from_mean[r], kWarp), of_max = merge_lanes(from_max[r], kWarp);
        if (lane >= images.count || first + r >= R) continue;
        const F bias = b1 ? b1[first + r] : F(0);
        hidden_mean.of(images.first + lane)[first + r] = relu(of_mean + bias);
        hidden_max.of(images.first + lane)[first + r] = relu(of_max + bias);
    }
}

// Channels of a block of channel_gate, each for ``lanes`` neighbours.
__host__ __device__ inline int gate_channels(int lanes) { return kThreads / lanes * kBatch; }

// g = sigmoid(w2 (hidden_mean + hidden_max) + 2 b2): the second layer is linear.
template <class F> __global__ void __launch_bounds__(kThreads)
    channel_gate(const F* w2, const F* b2, Rows<const F> hidden_mean, Rows<const F> hidden_max, Rows<F> g, int64_t N,
                 int C, int R, int lanes) {
    CBAM_SHARED(shared);
    F* const hidden = reinterpret_cast<F*>(shared);
    const unsigned blocks = (C + gate_channels(lanes) - 1) / gate_channels(lanes), block = blockIdx.x % blocks;
    const Images images(blocks, N);
    const int lane = threadIdx.x % lanes, groups = kThreads / lanes;
    const int first = block * gate_channels(lanes) + threadIdx.x / lanes;
    F logit[kBatch][kImages] = {};
    for (int r0 = 0; r0 < R; r0 += kChunk) {
        const int count = min(kChunk, R - r0);
        fill(hidden, images, r0, r0 + count,
             [&](int64_t image, int r) { return hidden_mean.of(image)[r] + hidden_max.of(image)[r]; });
        __syncthreads();
        for (int i = lane; i < count; i += lanes) {
            F w[kBatch];
#pragma unroll
            for (int k = 0; k < kBatch; ++k) {
                const int c = first + k * groups;
                w[k] = c < C ? w2[int64_t(c) * R + r0 + i] : F(0);
            }
#pragma unroll
            for (int n = 0; n < kImages; ++n)
#pragma unroll
                for (int k = 0; k < kBatch; ++k) logit[k][n] += w[k] * hidden[n * kChunk + i];
        }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
        const int c = first + k * groups;
        const F sum = merge_lanes(logit[k], lanes);
        if (lane < images.count && c < C) g.of(images.first + lane)[c] = sigmoid(b2 ? sum + 2 * b2[c] : sum);
    }
}

// From dg and what comes to g dg through the maps, (parts, C) for each image: dlogit = dg g (1 - g), and the gradients
// before the ReLU. A block has kUnits hidden units, its groups of kUnitLanes threads share the channels.
template <class F> __global__ void __launch_bounds__(kThreads, 2)
    hidden_backward(const F* dg, const F* through_maps, int parts, const F* w2, Rows<const F> gate,
                    Rows<const F> hidden_mean, Rows<const F> hidden_max, Rows<F> dlogit, Rows<F> dhidden_mean,
                    Rows<F> dhidden_max, Rows<F> hidden, int64_t N, int C, int R) {
    CBAM_SHARED(shared);
    F* const of_channels = reinterpret_cast<F*>(shared);
    F* const of_groups = of_channels + kImages * kChunk;  // (kUnitGroups, kImages, kUnits)
    const unsigned blocks = (R + kUnits - 1) / kUnits, block = blockIdx.x % blocks;
    const Images images(blocks, N);
    const int group = threadIdx.x / kUnitLanes, first = block * kUnits + threadIdx.x % kUnitLanes;
    F sum[kImages][kBatch] = {};
    for (int c0 = 0; c0 < C; c0 += kChunk) {
        const int count = min(kChunk, C - c0);
        fill(of_channels, images, c0, c0 + count, [&](int64_t image, int c) {
            const F g = gate.of(image)[c];
            F d = dg[image * C + c] * g;
            for (int part = 0; part < parts; ++part) d += through_maps[(image * parts + part) * C + c];
            return d * (1 - g);
        });
        __syncthreads();
        for (int n = 0; n < images.count && block == 0; ++n)
            for (int i = threadIdx.x; i < count; i += kThreads)
                dlogit.of(images.first + n)[c0 + i] = of_channels[n * kChunk + i];
#pragma unroll 4
        for (int i = group; i < count; i += kUnitGroups) {
            F w[kBatch];
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
                const int r = first + j * kUnitLanes;
                w[j] = r < R ? w2[int64_t(c0 + i) * R + r] : F(0);
            }
#pragma unroll
            for (int n = 0; n < kImages; ++n)
#pragma unroll
                for (int j = 0; j < kBatch; ++j) sum[n][j] += w[j] * of_channels[n * kChunk + i];
        }
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < kImages; ++n)
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
            of_groups[(group * kImages + n) * kUnits + threadIdx.x % kUnitLanes + j * kUnitLanes] = sum[n][j];
    __syncthreads();
    const int n = threadIdx.x / kUnits, r = block * kUnits + threadIdx.x % kUnits;
    if (n >= images.count || r >= R) return;
    F total = 0;
    for (int g = 0; g < kUnitGroups; ++g) total += of_groups[g * kImages * kUnits + threadIdx.x];
    const int64_t image = images.first + n;
    const F of_mean = hidden_mean.of(image)[r], of_max = hidden_max.of(image)[r];
    dhidden_mean.of(image)[r] = of_mean <= 0 ? F(0) : total;
    dhidden_max.of(image)[r] = of_max <= 0 ? F(0) : total;
    hidden.of(image)[r] = of_mean + of_max;
}

// The gradients of the pools, (images, 2, C): that of each element, and that of the maximum.
template <class F> __global__ void __launch_bounds__(kThreads)
    pools_backward(const F* w1, Rows<const F> dhidden_mean, Rows<const F> dhidden_max, F* dpools, int64_t N, int C,
                   int R, F HW) {
    CBAM_SHARED(shared);
    F *const mean = reinterpret_cast<F*>(shared), *const max = mean + kImages * kChunk;
    F* const of_groups = max + kImages * kChunk;  // (kPoolGroups, 2, kImages, kPoolChannels)
    const unsigned blocks = (C + kPoolChannels - 1) / kPoolChannels, block = blockIdx.x % blocks;
    const Images images(blocks, N);
    const int group = threadIdx.x / kPoolChannels, channel = threadIdx.x % kPoolChannels;
    const int c = block * kPoolChannels + channel;
    F dmean[kImages] = {}, dmax[kImages] = {};
    for (int r0 = 0; r0 < R; r0 += kChunk) {
        const int count = min(kChunk, R - r0);
        fill(mean, images, r0, r0 + count, [&](int64_t image, int r) { return dhidden_mean.of(image)[r]; });
        fill(max, images, r0, r0 + count, [&](int64_t image, int r) { return dhidden_max.of(image)[r]; });
        __syncthreads();
#pragma unroll 8
        for (int i = group; i < count; i += kPoolGroups) {
            const F w = c < C ? w1[int64_t(r0 + i) * C + c] : F(0);
#pragma unroll
            for (int n = 0; n < kImages; ++n) {
                dmean[n] += w * mean[n * kChunk + i];
                dmax[n] += w * max[n * kChunk + i];
            }
        }
        __syncthreads();
    }
    constexpr int kOfImage = 2 * kPoolChannels, kOfGroup = kImages * kOfImage;
#pragma unroll
    for (int n = 0; n < kImages; ++n) {
        of_groups[group * kOfGroup + n * kOfImage + channel] = dmean[n];
        of_groups[group * kOfGroup + n * kOfImage + kPoolChannels + channel] = dmax[n];
    }
    __syncthreads();
    const int n = group;  // there are as many
    static_assert(kPoolGroups == kImages);
    if (n >= images.count || c >= C) return;
    F of_mean = 0, of_max = 0;
    for (int g = 0; g < kPoolGroups; ++g) {
        of_mean += of_groups[g * kOfGroup + n * kOfImage + channel];
        of_max += of_groups[g * kOfGroup + n * kOfImage + kPoolChannels + channel];
    }
    dpools[(images.first + n) * 2 * C + c] = of_mean / HW;
    dpools[((images.first + n) * 2 + 1) * C + c] = of_max;
}

}  // namespace cbam::cuda
