// Backward of the channel gate for the images of an item. A block computes one item.
//
// hidden_backward: dlogit = g (1 - g) dg, with dg from the strips' partial sums; dhidden = act'(hidden) w2^T dlogit. A
// thread has kBatch hidden units, kUnitLanes lanes have kBackwardUnits; the kUnitGroups groups split the channels.
// pools_backward: dpools = w1^T dhidden. A thread has a channel; kPoolGroups groups split the hidden units.
//
// Reads: dg_sums, map_sums, w1, w2, saved; dg if given.
// Writes: dpools; dlogit, hidden sums and dhidden in partial.
// Shared memory: kMlpBackward values, the inputs of a layer and the groups' partial sums. A barrier precedes its use.
#pragma once

#include "mlp.cuh"

namespace cbam::cuda {

constexpr int kUnitLanes = 8;
constexpr int kBackwardUnits = kUnitLanes * kBatch;
constexpr int kUnitGroups = kThreads / kUnitLanes;
constexpr int kPoolChannels = 64;
constexpr int kPoolGroups = kThreads / kPoolChannels;
constexpr int kMlpBackward = 2 * kImages * kChunk + kPoolGroups * 2 * kImages * kPoolChannels;

// Returns the sum of the strips' partial sums for a channel, in the order of the strips.
template <class F>
__device__ __forceinline__ F join_strips(const Backward<F>& a, const F* of_strips, int64_t image, int c) {
    const int C = a.p.C, strips = a.strip.tiles();
    F sum = 0;
#pragma unroll 8
    for (int strip = 0; strip < strips; ++strip) sum += of_strips[(image * strips + strip) * C + c];
    return sum;
}

// dg without the terms through the maps: the given gradient, or the sum over pixels of s x dy.
template <class F> __device__ __forceinline__ F join_products(const Backward<F>& a, int64_t image, int c) {
    if (!a.p.given) return join_strips(a, a.dg_sums, image, c);
    return a.p.dg ? static_cast<const F*>(a.p.dg)[image * a.p.C + c] : F(0);
}

// Gradient before the gate ``term``, from d = g dg. A sigmoid that is the whole gate needs no division by g.
template <class F> __device__ __forceinline__ F before_gate(bool hard, F d, F g, F term) {
    if (!hard && term == g) return d * (1 - g);
    if (g == 0) return hard ? F(0) : d;  // NaN where the gradient is infinite
    return through_gate(hard, term, d / g);
}

template <class F> __device__ __forceinline__ void hidden_backward(const Backward<F>& a, const Images& images, int gate,
                                                                   int first_unit, int last_unit, F* shared) {
    const Layout& p = a.p;
    const Switches& of = p.switches;
    const bool apart = of.gates() == 2;  // each term has its own gate
    const int C = p.C, R = p.R, group = threadIdx.x / kUnitLanes;
    const F* const w2 = (const F*)p.w2;
    F *const of_channels = shared, *const of_groups =
                                       shared + kImages * kChunk;  // (kUnitGroups, kImages, kBackwardUnits)
    for (int unit = first_unit; unit < last_unit; unit += kBackwardUnits) {
        const int first = unit + threadIdx.x % kUnitLanes;
        F sum[kImages][kBatch] = {};
        for (int c0 = 0; c0 < C; c0 += kChunk) {
            const int count = min(kChunk, C - c0);
            if (unit == first_unit || C > kChunk) {
                __syncthreads();
                fill(of_channels, images, c0, c0 + count, [&](int64_t n, int c) {
                    const Image<F> image{p, n};
                    const F g = image.g()[c];
                    F d = join_products(a, n, c) * g;
                    if (a.maps_reach_channels()) d += join_strips(a, a.map_sums, n, c);
                    const F dlogit = before_gate(of.hard_channel, d, g, apart ? image.gate_term(gate)[c] : g);
                    if (unit == 0) image.dlogit(gate)[c] = dlogit;
                    return dlogit;
                });
                __syncthreads();
            }
#pragma unroll 4
            for (int i = group; i < count; i += kUnitGroups) {
                F w[kBatch];
#pragma unroll
                for (int j = 0; j < kBatch; ++j) {
                    const int r = first + j * kUnitLanes;
                    w[j] = r < last_unit ? w2[int64_t(c0 + i) * R + r] : F(0);
                }
#pragma unroll
                for (int n = 0; n < kImages; ++n)
#pragma unroll
                    for (int j = 0; j < kBatch; ++j) sum[n][j] += w[j] * of_channels[n * kChunk + i];
            }
        }
#pragma unroll
        for (int n = 0; n < kImages; ++n)
#pragma unroll
            for (int j = 0; j < kBatch; ++j)
                of_groups[(group * kImages + n) * kBackwardUnits + threadIdx.x % kUnitLanes + j * kUnitLanes] =
                    sum[n][j];
        __syncthreads();
        const int n = threadIdx.x / kBackwardUnits, r = unit + threadIdx.x % kBackwardUnits;
        if (n < images.count && r < last_unit) {
            F total = 0;
#pragma unroll 8
            for (int g = 0; g < kUnitGroups; ++g) total += of_groups[g * kImages * kBackwardUnits + threadIdx.x];
            const Image<F> image{p, images.first + n};
            for (int term = apart ? gate : 0; term < (apart ? gate + 1 : of.terms()); ++term)
                image.dhidden(term)[r] = p.w1 ? through_activation(of.activation, image.hidden(term)[r], total) : total;
            image.hidden_sum(gate)[r] = image.second_input(gate, r);
        }
        __syncthreads();
    }
}

template <class F> __device__ __forceinline__ void pools_backward(const Backward<F>& a, const Images& images,
                                                                  int first_channel, int last_channel, F* shared) {
    const Layout& p = a.p;
    const Switches& of = p.switches;
    const int C = p.C, R = p.R, group = threadIdx.x / kPoolChannels, channel = threadIdx.x % kPoolChannels;
    const F* const w1 = (const F*)p.w1;
    const bool two = of.terms() == 2;
    F *const of_first = shared, *const of_second = of_first + kImages * kChunk;
    F* const of_groups = of_second + kImages * kChunk;  // (kPoolGroups, kImages, 2, kPoolChannels)
    constexpr int kOfImage = 2 * kPoolChannels, kOfGroup = kImages * kOfImage;
    for (int first = first_channel; first < last_channel; first += kPoolChannels) {
        const int c = first + channel;
        F dfirst[kImages] = {}, dsecond[kImages] = {};
        for (int r0 = 0; w1 && r0 < R; r0 += kChunk) {
            const int count = min(kChunk, R - r0);
            if (first == first_channel || R > kChunk) {
                __syncthreads();
                for (int term = 0; term < of.terms(); ++term)
                    fill(term ? of_second : of_first, images, r0, r0 + count,
                         [&](int64_t n, int r) { return Image<F>{p, n}.dhidden(term)[r]; });
                __syncthreads();
            }
#pragma unroll 8
            for (int i = group; i < count; i += kPoolGroups) {
                const F w = c < last_channel ? w1[int64_t(r0 + i) * C + c] : F(0);
#pragma unroll
                for (int n = 0; n < kImages; ++n) {
                    dfirst[n] += w * of_first[n * kChunk + i];
                    if (two) dsecond[n] += w * of_second[n * kChunk + i];
                }
            }
        }
#pragma unroll
        for (int n = 0; n < kImages; ++n) {
            of_groups[group * kOfGroup + n * kOfImage + channel] = dfirst[n];
            of_groups[group * kOfGroup + n * kOfImage + kPoolChannels + channel] = dsecond[n];
        }
        __syncthreads();
        const int n = group;  // a group has one image
        static_assert(kPoolGroups == kImages);
        if (n < images.count && c < last_channel) {
            const Image<F> image{p, images.first + n};
            F first_term = w1 ? F(0) : image.dhidden(0)[c], second_term = w1 || !two ? F(0) : image.dhidden(1)[c];
            for (int g = 0; w1 && g < kPoolGroups; ++g) {
                first_term += of_groups[g * kOfGroup + n * kOfImage + channel];
                second_term += of_groups[g * kOfGroup + n * kOfImage + kPoolChannels + channel];
            }
            if (of.mean_of_pools) first_term /= 2;
            F* const dpools = a.dpools + image.n * 2 * C;
            dpools[c] = of.no_mean ? F(0) : first_term / F(p.HW());
            const F of_max = two ? second_term : first_term;
            dpools[C + c] = of.no_max ? F(0) : of.even_ties ? of_max / F(image.argmax_hw()[c]) : of_max;
        }
        __syncthreads();
    }
}

// Writes dg, a result of gate_grads.
template <class F> __device__ __forceinline__ void gate_gradients(const Backward<F>& a, const Images& images) {
    for (int n = 0; n < images.count; ++n)
        for (int c = threadIdx.x; c < a.p.C; c += kThreads)
            static_cast<F*>(a.p.dg)[(images.first + n) * a.p.C + c] =
                a.p.channel ? join_products(a, images.first + n, c) : F(0);
}

}  // namespace cbam::cuda
