// The channel gate for the images of an item, from the partial pools of the tiles. A block computes one item.
//
// hidden_units: the pools; hidden = w1 mean + b1 and w1 max + b1. A warp has kWarpUnits hidden units.
// gate_channels: g = sigmoid(w2 (act(w1 mean + b1) + act(w1 max + b1)) + 2 b2), because the second layer is linear;
// with gate_terms, the sum of a gate per term. ``lanes`` lanes have kBatch channels.
//
// Reads: the partial pools, w1, b1, w2, b2.
// Writes: pools, hidden and gates in saved, argmax_hw in index.
// Shared memory: kMlpForward values, the inputs of a layer. A barrier precedes its use.
#pragma once

#include "mlp.cuh"
#include "pool.cuh"

namespace cbam::cuda {

constexpr int kWarpUnits = 2;
constexpr int kForwardUnits = kWarps * kWarpUnits;
constexpr int kMlpForward = 2 * kImages * kChunk;

// Merges the partial pools of a channel, in the order of the tiles.
template <class F> __device__ __forceinline__ PoolSum<F> join_pools(const Forward<F>& a, int64_t image, int c) {
    const int C = a.p.C, parts = a.parts();
    const int64_t first = image * parts * C + c;
    const auto part = [&](int64_t at) {
        return PoolSum<F>{a.total[at], a.max ? Maximum<F>{a.max[at], a.argmax[at]} : Maximum<F>{}};
    };
    PoolSum<F> sum = part(first);
#pragma unroll 2
    for (int i = 1; i < parts; ++i) {
        const PoolSum<F> other = part(first + int64_t(i) * C);
        const bool even = a.p.switches.even_ties;
        sum = {sum.total + other.total, even ? merge_counts(sum.top, other.top) : larger(sum.top, other.top)};
    }
    return sum;
}

// Writes the MLP's inputs for ``count`` channels to ``inputs`` in shared memory, unless it is null. If ``saves``,
// writes the pools to saved and the argmax to index.
template <class F> __device__ __forceinline__ void load_pools(const Forward<F>& a, const Images& images, int c0,
                                                              int count, bool saves, F* inputs) {
    const Switches& of = a.p.switches;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        for (int n = 0; n < images.count; ++n) {
            const PoolSum<F> sum = join_pools(a, images.first + n, c0 + i);
            const F mean = sum.total / F(a.p.HW()), max = sum.top.value;
            const F first = of.no_mean ? max : of.mean_of_pools ? (mean + max) / 2 : mean;
            if (inputs) inputs[n * kChunk + i] = first;
            if (inputs && of.terms() == 2) inputs[(kImages + n) * kChunk + i] = max;
            if (!saves) continue;
            const Image<F> image{a.p, images.first + n};
            image.pool(0)[c0 + i] = first;
            if (of.pools() == 2) image.pool(1)[c0 + i] = max;
            if (!of.no_max) image.argmax_hw()[c0 + i] = sum.top.index;
        }
    }
}

template <class F> __device__ __forceinline__ void hidden_units(const Forward<F>& a, const Images& images,
                                                                int first_unit, int last_unit, F* shared) {
    const Layout& p = a.p;
    const int C = p.C, lane = threadIdx.x % kWarp;
    const F *const w1 = (const F*)p.w1, *const b1 = (const F*)p.b1;
    if (!w1) return load_pools<F>(a, images, first_unit, last_unit - first_unit, true, nullptr);
    const bool two = p.switches.terms() == 2;
    F *const of_first = shared, *const of_second = shared + kImages * kChunk;
    for (int unit = first_unit; unit < last_unit; unit += kForwardUnits) {
        const int first = unit + threadIdx.x / kWarp * kWarpUnits;
        F from_first[kWarpUnits][kImages] = {}, from_second[kWarpUnits][kImages] = {};
        for (int c0 = 0; c0 < C; c0 += kChunk) {
            const int count = min(kChunk, C - c0);
            if (unit == first_unit || C > kChunk) {
                __syncthreads();
                load_pools(a, images, c0, count, unit == 0, shared);
                __syncthreads();
            }
#pragma unroll 2
            for (int i = lane; i < count; i += kWarp) {
                F w[kWarpUnits];
                for (int r = 0; r < kWarpUnits; ++r)
                    w[r] = first + r < last_unit ? w1[int64_t(first + r) * C + c0 + i] : F(0);
#pragma unroll
                for (int n = 0; n < kImages; ++n) {
                    if (n >= images.count) break;
#pragma unroll
                    for (int r = 0; r < kWarpUnits; ++r) {
                        from_first[r][n] += w[r] * of_first[n * kChunk + i];
                        if (two) from_second[r][n] += w[r] * of_second[n * kChunk + i];
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kWarpUnits; ++r) {
            const F first_term = merge_lanes(from_first[r], kWarp), second_term = merge_lanes(from_second[r], kWarp);
            if (lane >= images.count || first + r >= last_unit) continue;
            const Image<F> image{p, images.first + lane};
            const F bias = b1 ? b1[first + r] : F(0);
            image.hidden(0)[first + r] = first_term + bias;
            if (two) image.hidden(1)[first + r] = second_term + bias;
        }
    }
}

// Channels of one step of gate_channels.
CBAM_ANYWHERE inline int gate_channels_at_once(int lanes) { return kThreads / lanes * kBatch; }

template <class F> __device__ __forceinline__ void gate_channels(const Forward<F>& a, const Images& images, int gate,
                                                                 int first_channel, int last_channel, F* hidden) {
    const Layout& p = a.p;
    const Switches& of = p.switches;
    const int R = p.R, lanes = lanes_for(R), lane = threadIdx.x % lanes, groups = kThreads / lanes;
    const F *const w2 = (const F*)p.w2, *const b2 = (const F*)p.b2;
    for (int channel = first_channel; channel < last_channel; channel += gate_channels_at_once(lanes)) {
        const int first = channel + threadIdx.x / lanes;
        F logit[kBatch][kImages] = {};
        for (int r0 = 0; r0 < R; r0 += kChunk) {
            const int count = min(kChunk, R - r0);
            if (channel == first_channel || R > kChunk) {
                __syncthreads();
                fill(hidden, images, r0, r0 + count,
                     [&](int64_t n, int r) { return Image<F>{p, n}.second_input(gate, r); });
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
            if (lane >= images.count || c >= last_channel) continue;
            const Image<F> image{p, images.first + lane};
            const F v = gate_of(of.hard_channel, b2 ? sum + F(of.terms() / of.gates()) * b2[c] : sum);
            if (of.gates() == 2) image.gate_term(gate)[c] = v;
            image.g()[c] = gate ? image.gate_term(0)[c] + v : v;
        }
    }
}

}  // namespace cbam::cuda
