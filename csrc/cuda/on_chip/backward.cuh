// Backward of one image by one block, or by one cluster of blocks: dx, the image's partial sums of the gradients of the
// parameters, and behind a ReLU dresidual, the masked dy.
//
// The threads of a block take each step together. They load the block's rows of x and dy. Sums over the channels of
// g x dy give the gradients of the spatial gate, and so of ws, bs and the maps. Sums over the pixels of x times the
// gradient of g x give those of the channel gate, and so of the MLP and the pools. Last comes dx.
//
// Reads: x and dy once, y once behind a ReLU; w1 and w2 once an image; ws, the gates, maps and argmax of the image and
// the hidden vectors once a block.
// Writes: dx once, and again at each argmax; dresidual and partial once.
// Shared memory: the block's rows of x and dy; a Side for the channels and one for the pixels, 16 bytes each; sums of
// the rows for each slice; sums of all columns for each group, then dz or dlogit; the hidden sums; sums of dws; ws; the
// terms of dg from the maxima.
// Between blocks: the sums of the columns (4 bytes each), hidden sums and sums of dws, and what each needs of the other
// of dz and the gradients of the maps and pools.
#pragma once

#include "gate_gradients.cuh"

namespace cbam::cuda {

// Numbers of the channels or of the pixels: the gate, the gradients of the mean and of the maximum, and the argmax. For
// pixels, mean and max have the maps until their gradients replace them.
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

// dy with the zeros of the ReLU, also to masked unless null.
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

// The block's rows of x and dy, the gates, the maps and argmax of the image, and ws.
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

// dx = (dy s + dmean_q + [q's argmax is c] dmax_q) g + dmean_c + [c's argmax is q] dmax_c of channel c, pixel q: here
// all elements without the brackets. A thread keeps the numbers of its columns while it goes down the rows.
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

// dx once more, with the brackets, at the argmax of a row or of a column.
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
    // An element at both is written for the column.
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
    b.sync();  // no block writes to another that has not begun
    if (p.ws) spatial_gate_backward(b);
    if (p.w1) channel_gate_backward(b);
    T* dx = b.rows_of(p.dx);
    if (p.dy) write_dx<true>(b, dx);
    else write_dx<false>(b, dx);
    __syncthreads();
    write_dx_at_maxima(b, dx);
}

}  // namespace cbam::cuda
