// Backward of one image by one block or one cluster: dx, the image's gradients of the parameters and, with a ReLU,
// dresidual, the masked dy.
//
// All threads of a block take each step together. They load the block's rows of x and dy. Sums over the channels of g x
// dy give dz, then dws, dbs and the gradients of the maps. Sums over the pixels of x times the gradient of g x give
// dlogit, then the gradients of the MLP and the pools. Last, they write dx.
//
// Reads: x and dy once, y once with a ReLU; w1 and w2 once per image; ws, gates, maps, argmax and hidden vectors once
// per block.
// Writes: dx once, and again at each argmax; dresidual and partial once.
// Shared memory: the block's rows of x and dy; a Side for the channels and one for the pixels, 16 bytes per index; row
// sums per slice; column sums per group, then dz or dlogit; hidden sums; partial sums of dws; ws; terms of dg.
// Between blocks: column sums (4 bytes each), hidden sums, partial sums of dws, and what another block needs of dz and
// of the gradients of the maps and pools.
#pragma once

#include "gate_gradients.cuh"

namespace cbam::cuda {

// Values of the channels or the pixels: the gate, the gradients of mean and maximum, the argmax. For pixels, mean and
// max are the maps until their gradients replace them.
struct Side {
    float *gate, *mean, *max;
    int32_t* argmax;

    __device__ Side(float* shared, int n)
        : gate(shared), mean(gate + n), max(mean + n), argmax(reinterpret_cast<int32_t*>(max + n)) {}
};

template <class Element, bool nhwc> struct BackwardBlock : ImageBlock<Element, nhwc> {
    using Base = ImageBlock<Element, nhwc>;
    using Base::o, Base::floats, Base::shared;
    Element* const dy = reinterpret_cast<Element*>(shared + o.dy);
    const Side channel{floats(o.channels), Base::C}, pixel{floats(o.pixels), Base::HW};
    const Side row_side = nhwc ? pixel : channel, column_side = nhwc ? channel : pixel;
    float *const scratch = floats(o.scratch), *const terms = floats(o.terms);
    float* const ws_partials = floats(o.ws_partials);
    const Sums row_partials{floats(o.row_partials)}, column_partials{scratch};
};

// Loads dy, applies the ReLU's backward, and writes the result also to masked, unless it is null.
template <class T>
__device__ __forceinline__ void load_masked(const T* dy, const T* y, int elements, T* to, T* masked) {
    for (int i = int(threadIdx.x) * kVector<T>; i < elements; i += kOnChipThreads * kVector<T>) {
        Vector<T> d = load_vector(dy + i);
        const Vector<T> v = load_vector(y + i);
        mask_by(v, d);
        d.store(to + i);
        if (masked) d.store(masked + i);
    }
}

// Loads the block's rows of x and dy, the image's gates, maps and argmax, and ws.
template <class Block> __device__ __forceinline__ void load(const Block& b) {
    const Problem& p = b.p;
    const int elements = b.rows * b.o.cols, C = b.C, HW = b.HW;
    load_rows(b.rows_of(p.x), elements, b.x);
    if (p.relu)
        load_masked(b.rows_of(p.dy), b.rows_of(p.y), elements, b.dy, p.dresidual ? b.rows_of(p.dresidual) : nullptr);
    else if (p.dy) load_rows(b.rows_of(p.dy), elements, b.dy);
    const float* maps = b.saved_maps();
    const int32_t *argmax = b.argmax(), *argmax_maps = b.argmax_maps();
    const float* s = p.s ? static_cast<const float*>(p.s) + b.n * HW : maps + 2 * HW;
    for (int c = int(threadIdx.x); c < C; c += kOnChipThreads) {
        b.channel.gate[c] = p.channel ? b.saved()[2 * C + c] : 1, b.channel.argmax[c] = p.channel ? argmax[c] : 0;
        b.channel.mean[c] = b.channel.max[c] = 0;
    }
    for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) {
        b.pixel.gate[q] = p.spatial ? s[q] : 1, b.pixel.argmax[q] = p.spatial ? argmax_maps[q] : 0;
        b.pixel.mean[q] = p.spatial ? maps[q] : 0, b.pixel.max[q] = p.spatial ? maps[HW + q] : 0;
    }
    load_ws(b);
}

// dx = (dy s + dmean_q + [c = argmax of q] dmax_q) g + dmean_c + [q = argmax of c] dmax_c for channel c and pixel q.
// Writes all elements without the brackets. A thread keeps the values of its columns while it goes down the rows.
template <bool with_dy, class Block> __device__ __forceinline__ void write_dx(const Block& b, typename Block::T* dx) {
    using T = typename Block::T;
    const OnChip& o = b.o;
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::value;
        const int words = o.cols / W;
        for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
            const int col = i % words * W;
            float column_gate[W], column_mean[W];
            load_numbers(b.column_side.gate + col, column_gate);
            load_numbers(b.column_side.mean + col, column_mean);
#pragma unroll 4
            for (int row = i / words; row < b.rows; row += o.groups) {
                const float gate = b.row_side.gate[b.row_range.first + row];
                const float mean = b.row_side.mean[b.row_range.first + row];
                float v[W] = {};
                if constexpr (with_dy) load<W>(b.dy + row * o.cols + col, v);
#pragma unroll
                for (int j = 0; j < W; ++j)
                    v[j] = Block::channels_last ? (v[j] * gate + mean) * column_gate[j] + column_mean[j]
                                                : (v[j] * column_gate[j] + column_mean[j]) * gate + mean;
                store<W>(dx + row * o.cols + col, v);
            }
        }
    });
}

// Writes dx again, with the brackets, at the argmax of each row and column.
template <class Block> __device__ __forceinline__ void write_dx_at_maxima(const Block& b, typename Block::T* dx) {
    const int first = b.row_range.first;
    const auto write = [&](int row, int col) {
        const int i = row * b.o.cols + col, at = first + row;
        const float d = b.p.dy ? to_acc(b.dy[i]) : 0;
        const float row_gate = b.row_side.gate[at], column_gate = b.column_side.gate[col];
        const float row_mean = b.row_side.mean[at], column_mean = b.column_side.mean[col];
        const float row_max = b.row_side.argmax[at] == col ? b.row_side.max[at] : 0;
        const float column_max = b.column_side.argmax[col] == at ? b.column_side.max[col] : 0;
        dx[i] = from_acc<typename Block::T>(
            Block::channels_last ? (d * row_gate + row_mean + row_max) * column_gate + column_mean + column_max
                                 : (d * column_gate + column_mean + column_max) * row_gate + row_mean + row_max);
    };
    // An element that is the argmax of both is written for the column.
    for (int row = int(threadIdx.x); row < b.rows; row += kOnChipThreads) {
        const int col = b.row_side.argmax[first + row];
        if (b.column_side.argmax[col] != first + row) write(row, col);
    }
    for (int col = int(threadIdx.x); col < b.o.cols; col += kOnChipThreads) {
        const int row = b.column_side.argmax[col] - first;
        if (row >= 0 && row < b.rows) write(row, col);
    }
}

template <class T, bool channels_last> __global__ void __launch_bounds__(kOnChipThreads, 2)
    cbam_bwd_on_chip_kernel(const Problem p, const OnChip o) {
    CBAM_SHARED(shared);
    const BackwardBlock<T, channels_last> b{{p, o, shared}};
    load(b);
    b.sync();  // a block must not write to one that has not started
    if (p.ws) spatial_gate_backward(b);
    if (p.w1) channel_gate_backward(b);
    T* dx = b.rows_of(p.dx);
    if (p.dy) write_dx<true>(b, dx);
    else write_dx<false>(b, dx);
    __syncthreads();
    write_dx_at_maxima(b, dx);
}

}  // namespace cbam::cuda
