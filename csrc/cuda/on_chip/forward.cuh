// Forward of one image by one block or one cluster: y = relu(x g s + residual) or, without y, only the gates.
//
// All threads of a block take each step together. They load the block's rows of x and pool each channel; the MLP
// computes g. They pool g x over the channels, which gives the maps; the convolution computes s. Last, they write y.
//
// Reads: x and residual once; w1, w2 and b2 once per image; b1, ws and bs once per block.
// Writes: y, pools, maps, argmax, hidden vectors and gates once.
// Shared memory: the block's rows of x; pools of its rows per slice; pools, then gates, of the rows, and of all columns
// per group; hidden sums; ws and bs.
// Between blocks: column pools (12 bytes each), hidden sums, and the parts of maps and gates that others need.
#pragma once

#include "convolution.cuh"
#include "mlp.cuh"
#include "pool.cuh"

namespace cbam::cuda {

template <class Element, bool nhwc> struct ForwardBlock : ImageBlock<Element, nhwc> {
    using Base = ImageBlock<Element, nhwc>;
    using Base::o, Base::row_range, Base::shared;
    const Pools row_partials{shared + o.row_partials, o.slices * o.max_rows};
    const Pools row_pools{shared + o.row_pools, o.pooled_rows, nhwc ? 0 : row_range.first};
    const Pools column_pools{shared + o.column_pools, o.groups * o.cols};
    const Pools channel = nhwc ? column_pools : row_pools, pixel = nhwc ? row_pools : column_pools;
};

// Computes g and stores it in the blocks that multiply by it.
template <class Block> __device__ __forceinline__ void compute_channel_gate(const Block& b) {
    constexpr bool channels_last = Block::channels_last;
    if (b.p.w1) {
        if (channels_last) pool_columns<false>(b, nullptr, b.saved(), b.argmax());
        else pool_rows<false>(b, nullptr, b.saved(), b.argmax());
        __syncthreads();
        channel_gate(b, [&](int c, float g) { store_number<channels_last>(b.blocks, b.channel.gate + c, g); });
        b.sync();
    } else {
        const Range held = channels_last ? Range{0, b.C} : b.channels;
        for (int c = held.first + int(threadIdx.x); c < held.last; c += kOnChipThreads) b.channel.gate[c] = 1;
        __syncthreads();
    }
    for (int c = b.channels.first + int(threadIdx.x); b.p.channel && c < b.channels.last; c += kOnChipThreads)
        b.saved()[2 * b.C + c] = b.channel.gate[c];
}

// Computes s. Without y, s is the result of the convolution.
template <class Block> __device__ __forceinline__ void compute_spatial_gate(const Block& b) {
    constexpr bool channels_last = Block::channels_last;
    if (b.p.ws) {
        if (channels_last) pool_rows<true>(b, b.channel.gate, b.saved_maps(), b.argmax_maps());
        else pool_columns<true>(b, b.channel.gate, b.saved_maps(), b.argmax_maps());
        b.sync();
        const float bias = b.p.bs ? b.ws[2 * b.kk] : 0;
        convolve<float, false>(
            b,
            [&](float& a, float of_mean, float of_max, int q) {
                a += of_mean * b.pixel.sum[q] + of_max * b.pixel.max[q];
            },
            [&](int q, float a) {
                store_number<!channels_last>(b.blocks, b.pixel.gate + q, b.p.y ? sigmoid(a + bias) : a + bias);
            });
        b.sync();
    } else {
        for (int q = int(threadIdx.x); q < b.HW; q += kOnChipThreads) b.pixel.gate[q] = 1;
        __syncthreads();
    }
    for (int q = b.pixels.first + int(threadIdx.x); b.p.spatial && q < b.pixels.last; q += kOnChipThreads)
        b.saved_maps()[2 * b.HW + q] = b.pixel.gate[q];
}

// y = relu(x g s + residual). A thread keeps the gates of its columns while it goes down the rows.
template <bool with_residual, bool with_relu, class Block> __device__ __forceinline__ void apply_rows(const Block& b) {
    using T = typename Block::T;
    const OnChip& o = b.o;
    T* y = b.rows_of(b.p.y);
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::value;
        const int words = o.cols / W;
        for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
            const int col = i % words * W;
            float column_gate[W];
            load_numbers(b.column_pools.gate + col, column_gate);
#pragma unroll 4
            for (int row = i / words; row < b.rows; row += o.groups) {
                const int at = row * o.cols + col;
                const float row_gate = b.row_pools.gate[b.row_range.first + row];
                float v[W];
                [[maybe_unused]] float add[W];
                load<W>(b.x + at, v);
                if constexpr (with_residual) load<W>(b.rows_of(b.p.residual) + at, add);
                Packed<T, W> result;
#pragma unroll
                for (int j = 0; j < W; ++j) {
                    v[j] = v[j] * row_gate * column_gate[j];
                    if constexpr (with_residual) v[j] += add[j];
                    result.v[j] = from_acc<T>(v[j]);
                }
                if constexpr (with_relu) relu(result);
                result.store(y + at);
            }
        }
    });
}

template <class Block> __device__ __forceinline__ void apply_gates(const Block& b) {
    if (b.p.residual && b.p.relu) apply_rows<true, true>(b);
    else if (b.p.residual) apply_rows<true, false>(b);
    else if (b.p.relu) apply_rows<false, true>(b);
    else apply_rows<false, false>(b);
}

template <class T, bool channels_last> __global__ void __launch_bounds__(kOnChipThreads, 2)
    cbam_fwd_on_chip_kernel(const Problem p, const OnChip o) {
    CBAM_SHARED(shared);
    const ForwardBlock<T, channels_last> b{{p, o, shared}};
    load_rows(b.rows_of(p.x), b.rows * o.cols, b.x);
    load_ws(b);
    if (p.bs && threadIdx.x == 0) b.ws[2 * b.kk] = *static_cast<const float*>(p.bs);
    b.sync();  // a block must not write to one that has not started
    compute_channel_gate(b);
    compute_spatial_gate(b);
    if (p.y) apply_gates(b);
}

}  // namespace cbam::cuda
