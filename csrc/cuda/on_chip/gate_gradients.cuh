// Gradients through both gates: dz of the convolution's result, then dws, dbs and the gradients of the maps; dlogit
// before the channel gate's sigmoid, then the gradients of the MLP and the pools.
#pragma once

#include "../common/max_terms.cuh"
#include "convolution.cuh"
#include "mlp.cuh"

namespace cbam::cuda {

// Sums term(x, dy, gate and mean of the column) over the columns, for each of the block's rows and each slice.
template <int W, bool with_dy, class Block, class Term>
__device__ __forceinline__ void sum_rows(const Block& b, Term term) {
    reduce_rows<float, W>(b.o, b.rows, b.row_partials, [&](auto& sum, auto start, int first, int last, int step) {
#pragma unroll 1
        for (int col = first; col < last; col += step) {
            float gate[W], mean[W];
            load_numbers(b.column_side.gate + col, gate);
            load_numbers(b.column_side.mean + col, mean);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                float v[W], d[W] = {};
                load<W>(b.x + start(i) + col, v);
                if constexpr (with_dy) load<W>(b.dy + start(i) + col, d);
#pragma unroll
                for (int j = 0; j < W; ++j) sum[i] += term(v[j], d[j], gate[j], mean[j]);
            }
        }
    });
}

// Sums term(x, dy, gate and mean of the row) over the block's rows, for each column.
template <int W, bool with_dy, class Block, class Term>
__device__ __forceinline__ void sum_columns(const Block& b, Term term) {
    const OnChip& o = b.o;
    reduce_columns<float, W>(o.cols, o.groups, b.column_partials, [&](auto& sum, int group, int col) {
#pragma unroll 4
        for (int row = group; row < b.rows; row += o.groups) {
            const float gate = b.row_side.gate[b.row_range.first + row];
            const float mean = b.row_side.mean[b.row_range.first + row];
            float v[W], d[W] = {};
            load<W>(b.x + row * o.cols + col, v);
            if constexpr (with_dy) load<W>(b.dy + row * o.cols + col, d);
#pragma unroll
            for (int j = 0; j < W; ++j) sum[j] += term(v[j], d[j], gate, mean);
        }
    });
}

// After sum_rows, calls put(row, sum over the slices) for the block's rows.
template <class Block, class Put> __device__ __forceinline__ void join_rows(const Block& b, Put put) {
    __syncthreads();
    for (int row = int(threadIdx.x); row < b.rows; row += kOnChipThreads)
        put(b.row_range.first + row, join_slices(b.o, b.rows, row, b.row_partials));
}

// After sum_columns, calls put(column, sum over the blocks) for the block's range of columns.
template <class Block, class Put> __device__ __forceinline__ void join_columns(const Block& b, Put put) {
    b.sync();
    for (int col = b.column_range.first + int(threadIdx.x); col < b.column_range.last; col += kOnChipThreads)
        put(col, join_blocks(b.blocks, b.column_partials, col));
}

// Writes dz = s (1 - s) (sum over channels of g x dy), or the given gradient, to scratch of all blocks.
template <class Block> __device__ __forceinline__ void compute_dz(const Block& b) {
    using T = typename Block::T;
    float* dz = b.scratch;
    if (b.p.given) {
        const float* ds = b.p.ds ? static_cast<const float*>(b.p.ds) + b.n * b.HW : nullptr;
        for (int q = int(threadIdx.x); q < b.HW; q += kOnChipThreads) dz[q] = ds ? ds[q] : 0;
        return;
    }
    with_word<T>(b.o.cols, [&](auto word) {
        constexpr int W = decltype(word)::value;
        const auto term = [](float x, float dy, float g, float) { return g * (x * dy); };
        if constexpr (Block::channels_last) sum_rows<W, true>(b, term);
        else sum_columns<W, true>(b, term);
    });
    const auto put = [&](int q, float ds) {
        const float s = b.pixel.gate[q];
        store_number<true>(b.blocks, dz + q, ds * (s * (1 - s)));
    };
    if constexpr (Block::channels_last) join_rows(b, put);
    else join_columns(b, put);
}

// From dz, writes dws and dbs of the image to partial, and the gradients of the maps (all channels, argmax) to
// pixel.mean and pixel.max.
template <class Block> __device__ __forceinline__ void spatial_gate_backward(const Block& b) {
    const float* dz = b.scratch;
    compute_dz(b);
    b.sync();
    sum_ws_gradient(b, dz);
    b.sync();
    const int sums = 2 * b.kk + 1, rank = b.blocks.rank(), count = b.blocks.count;
    float* partial = b.partial() + b.p.C + 3 * b.p.R;
    for (int i = sums * rank / count + int(threadIdx.x); i < sums * (rank + 1) / count; i += kOnChipThreads) {
        float total = 0;
        for (int from = 0; from < count; ++from) {
            float sum = 0;
            for (int slice = 0; slice < b.o.ws_slices; ++slice)
                sum += *b.blocks.of(from, b.ws_partials + slice * sums + i);
            total += sum;
        }
        partial[i] = total;
    }
    convolve<Pair, true>(
        b,
        [&](Pair& a, float of_mean, float of_max, int q) {
            a.mean += of_mean * dz[q];
            a.max += of_max * dz[q];
        },
        [&](int q, const Pair& a) {
            store_number<!Block::channels_last>(b.blocks, b.pixel.mean + q, a.mean / b.C);
            store_number<!Block::channels_last>(b.blocks, b.pixel.max + q, a.max);
        });
    b.sync();
}

// The terms of dg at the maxima over the channels, for the channels in ``held``: the sum of dmax_q x over the pixels q
// whose argmax is the channel. The warps split the pixels.
template <class Block> __device__ __forceinline__ void sum_max_terms(const Block& b, Range held) {
    constexpr bool channels_last = Block::channels_last;
    const int count = held.last - held.first, warp = int(threadIdx.x) / kWarp;
    for (int i = int(threadIdx.x); i < b.o.term_warps * count; i += kOnChipThreads) b.terms[i] = 0;
    __syncthreads();
    if (!b.p.ws || warp >= b.o.term_warps) return;
    const auto key = [&](int q) {
        const int c = b.pixel.argmax[q];
        return c >= held.first && c < held.last ? c - held.first : -1;
    };
    const auto term = [&](int q) {
        const int row = (channels_last ? q : b.pixel.argmax[q]) - b.row_range.first;
        return b.pixel.max[q] * to_acc(b.x[row * b.o.cols + (channels_last ? b.pixel.argmax[q] : q)]);
    };
    const Range seen = channels_last ? b.pixels : Range{0, b.HW};
    sum_by_key(seen.first + warp * kWarp, seen.last, b.o.term_warps * kWarp, b.terms + warp * count, key, term);
}

// Sums x (dy s + dmean_q) over the pixels or, if the gradients of the gates are given, x dmean_q.
template <class Block> __device__ __forceinline__ void sum_dg(const Block& b) {
    using T = typename Block::T;
    const auto sum = [&](auto with_dy, auto term) {
        with_word<T>(b.o.cols, [&](auto word) {
            constexpr int W = decltype(word)::value;
            // Along the rows in words of 8 bytes, because words of 16 bytes need too many registers.
            if constexpr (Block::channels_last) sum_columns<W, decltype(with_dy)::value>(b, term);
            else sum_rows<W == 1 ? 1 : 8 / int(sizeof(T)), decltype(with_dy)::value>(b, term);
        });
    };
    if (b.p.given) sum(std::false_type{}, [](float x, float, float, float dmean) { return x * dmean; });
    else sum(std::true_type{}, [](float x, float dy, float s, float dmean) { return x * (dy * s + dmean); });
}

// Writes dlogit = g (1 - g) dg to scratch, and the gradients of the pools to channel.mean and channel.max.
template <class Block> __device__ __forceinline__ void channel_gate_backward(const Block& b) {
    constexpr bool channels_last = Block::channels_last;
    float* dlogit = b.scratch;
    const float* dg = b.p.given && b.p.dg ? static_cast<const float*>(b.p.dg) + b.n * b.p.C : nullptr;
    const auto put = [&](int c, float sum) {
        const float g = b.channel.gate[c];
        dlogit[c] = (sum + (dg ? dg[c] : 0)) * (g * (1 - g));
    };
    const Range held = channels_last ? Range{0, b.C} : b.channels;  // channels of which the block has elements
    const auto max_terms = [&](int c) {
        float sum = 0;
        for (int warp = 0; warp < b.o.term_warps; ++warp)
            sum += b.terms[warp * (held.last - held.first) + c - held.first];
        return sum;
    };
    sum_max_terms(b, held);
    sum_dg(b);
    if constexpr (channels_last) {
        __syncthreads();
        for (int c = int(threadIdx.x); c < b.C; c += kOnChipThreads) b.scratch[c] += max_terms(c);
        join_columns(b, put);
    } else {
        join_rows(b, [&](int c, float sum) { put(c, sum + max_terms(c)); });
    }
    __syncthreads();
    mlp_backward(b, dlogit, [&](int c, float mean, float max) {
        store_number<channels_last>(b.blocks, b.channel.mean + c, mean);
        store_number<channels_last>(b.blocks, b.channel.max + c, max);
    });
    b.sync();
}

}  // namespace cbam::cuda
