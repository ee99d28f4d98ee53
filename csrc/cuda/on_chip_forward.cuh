// Forward of one image by one block, or by one cluster of blocks: y = relu(x g s + residual), or, without y, the gates
// alone.
//
// x is read once and y written once. The rest: w1 and w2 once an image, b1, ws, bs once a block; mean, max and place of
// each channel and pixel, the hidden vectors and the gates are written once. Between the blocks goes, through
// distributed shared memory, what each has summed of the columns (12 bytes for each group of rows and column), the
// hidden sums, and what all need of the gates and the maps.
//
// Shared memory: the block's rows of x; sums, maxima and places (then gates) of all rows, and of all columns for each
// group of rows; the hidden sums; ws and bs.
#pragma once

#include "on_chip_gate.cuh"
#include "on_chip_map.cuh"

namespace cbam::cuda {

template <class T, bool channels_last, class B>
__device__ __forceinline__ void forward_image(const Problem& p, const OnChip& o, const B& blocks, int64_t n) {
    CBAM_SHARED(shared);
    const int C = int(p.C), R = int(p.R), HW = int(p.HW()), kk = int(p.k * p.k), rank = blocks.rank();
    const Part row_part = part_of(rank, blocks.count(), o.rows, o.unit);
    const Part column_part = part_of(rank, blocks.count(), o.cols, 1);
    const Part channels = channels_last ? column_part : row_part, pixels = channels_last ? row_part : column_part;
    const int rows = row_part.last - row_part.first, elements = rows * o.cols;
    const int64_t start = n * C * HW + int64_t(row_part.first) * o.cols;

    T* x = reinterpret_cast<T*>(shared + o.x);
    const Pools row_side(shared + o.row_side, o.rows), column_side(shared + o.column_side, o.groups * o.cols);
    const Pools channel = channels_last ? column_side : row_side, pixel = channels_last ? row_side : column_side;
    float *hidden = reinterpret_cast<float*>(shared + o.hidden), *window = reinterpret_cast<float*>(shared + o.window);
    float* saved = static_cast<float*>(p.saved) + n * p.saved_size();
    float* saved_maps = saved + 3 * C + 2 * R;
    int32_t* index = p.index + n * (C + HW);

    load_rows(static_cast<const T*>(p.x) + start, elements, x);
    if (p.ws)
        for (int i = int(threadIdx.x); i < 2 * kk; i += kOnChipThreads) window[i] = static_cast<const float*>(p.ws)[i];
    if (p.bs && threadIdx.x == 0) window[2 * kk] = *static_cast<const float*>(p.bs);
    blocks.sync();  // no block writes to another that has not begun

    // Pools over the columns of each row, of x times what factor gives for the column. To all blocks where the rows
    // are pixels, since the convolution looks beyond its own.
    auto pool_rows = [&](float* means, int32_t* places, const float* factor) {
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            reduce_rows<Pooled, W>(
                rows, o.cols, o.lanes,
                [&](Pooled& a, int row, int col) {
                    float v[W];
                    load_word(x + row * o.cols + col, v);
                    for (int i = 0; i < W; ++i) a.add(factor ? v[i] * factor[col + i] : v[i], col + i);
                },
                [&](int row, const Pooled& a) { row_side.put(row_part.first + row, a); });
        });
        __syncthreads();
        for (int i = row_part.first + int(threadIdx.x); i < row_part.last; i += kOnChipThreads) {
            const float mean = row_side.sum[i] / o.cols, most = row_side.most[i];
            const int place = row_side.place()[i];
            means[i] = mean;
            means[o.rows + i] = most;
            places[i] = place == Pooled::kNowhere ? 0 : place;
            if (channels_last) {
                store_to_all(blocks, row_side.sum + i, mean);
                store_to_all(blocks, row_side.most + i, most);
            } else {
                row_side.sum[i] = mean;
            }
        }
    };
    // The same for each column, over rows: each block does all columns of its rows, and then joins its part of them.
    auto pool_columns = [&](float* means, int32_t* places, const float* factor) {
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            reduce_columns<Pooled, W>(
                rows, o.cols, o.groups,
                [&](Pooled(&a)[W], int row, int col) {
                    float v[W];
                    load_word(x + row * o.cols + col, v);
                    const float f = factor ? factor[row_part.first + row] : 1;
                    for (int i = 0; i < W; ++i) a[i].add(factor ? v[i] * f : v[i], row_part.first + row);
                },
                [&](int i, const Pooled& a) { column_side.put(i, a); });
        });
        blocks.sync();
        join_columns<Pooled>(
            blocks, column_part, o.cols, o.groups, [&](int from, int i) { return column_side.get(blocks, from, i); },
            [&](int col, const Pooled& a) {
                const float mean = a.sum / o.rows;
                means[col] = mean;
                means[o.cols + col] = a.most.value;
                places[col] = a.place();
                if (channels_last) {
                    column_side.sum[col] = mean;
                    column_side.most[col] = a.most.value;
                } else {
                    store_to_all(blocks, column_side.sum + col, mean);
                    store_to_all(blocks, column_side.most + col, a.most.value);
                }
            });
    };

    if (p.w1) {
        if (channels_last) pool_columns(saved, index, nullptr);
        else pool_rows(saved, index, nullptr);
        __syncthreads();
        channel_gate(p, o, blocks, channels, channel.sum, channel.most, hidden, saved + 3 * C, [&](int c, float g) {
            if (channels_last) store_to_all(blocks, channel.gate + c, g);
            else channel.gate[c] = g;
        });
        blocks.sync();
    } else {
        for (int c = int(threadIdx.x); c < C; c += kOnChipThreads) channel.gate[c] = 1;
        for (int c = channels.first + int(threadIdx.x); c < channels.last; c += kOnChipThreads)
            saved[c] = saved[C + c] = 0, index[c] = 0;
        __syncthreads();
    }
    for (int c = channels.first + int(threadIdx.x); c < channels.last; c += kOnChipThreads)
        saved[2 * C + c] = channel.gate[c];

    if (p.ws) {
        if (channels_last) pool_rows(saved_maps, index + C, channel.gate);
        else pool_columns(saved_maps, index + C, channel.gate);
        blocks.sync();
        const float bias = p.bs ? window[2 * kk] : 0;
        convolve<Sum>(
            p, pixels,
            [&](Sum& a, int tap, int q) { a.value += window[tap] * pixel.sum[q] + window[kk + tap] * pixel.most[q]; },
            [&](int q, const Sum& a) {
                const float s = p.y ? sigmoid(a.value + bias) : a.value + bias;
                if (channels_last) pixel.gate[q] = s;
                else store_to_all(blocks, pixel.gate + q, s);
            });
        blocks.sync();
    } else {
        for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) pixel.gate[q] = 1;
        for (int q = pixels.first + int(threadIdx.x); q < pixels.last; q += kOnChipThreads)
            saved_maps[q] = saved_maps[HW + q] = 0, index[C + q] = 0;
        __syncthreads();
    }
    for (int q = pixels.first + int(threadIdx.x); q < pixels.last; q += kOnChipThreads)
        saved_maps[2 * HW + q] = pixel.gate[q];
    if (!p.y) return;

    const T* residual = p.residual ? static_cast<const T*>(p.residual) + start : nullptr;
    T* y = static_cast<T*>(p.y) + start;
    const float *row_gate = row_side.gate + row_part.first, *column_gate = column_side.gate;
    for (int i = int(threadIdx.x) * kVector<T>; i < elements; i += kOnChipThreads * kVector<T>) {
        Vector<T> v = load_vector(x + i), add;
        if (residual) add = load_vector(residual + i);
        each_element<T>(i, o.cols, [&](int e, int row, int col) {
            float value = to_acc(v.v[e]) * row_gate[row] * column_gate[col];
            if (residual) value += to_acc(add.v[e]);
            v.v[e] = from_acc<T>(p.relu ? relu(value) : value);
        });
        store_vector(y + i, v);
    }
}

// Block b of the grid is one of those of image b / cluster.
template <class T, bool channels_last, bool clustered> __global__ void __launch_bounds__(kOnChipThreads, 2)
    on_chip_forward_kernel(const Problem p, const OnChip o) {
    if constexpr (!clustered || kClusters)
        forward_image<T, channels_last>(p, o, Blocks<clustered>{}, int64_t(blockIdx.x) / o.cluster);
}

}  // namespace cbam::cuda
