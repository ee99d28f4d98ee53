// Forward of one image by one block, or by one cluster of blocks: y = relu(x g s + residual), or, without y, the gates
// alone.
//
// x is read once and y written once. The rest: w1 and w2 once an image, b1, ws, bs once a block; mean, max and place of
// each channel and pixel, the hidden vectors and the gates are written once. Between the blocks goes, through
// distributed shared memory, what each has summed of the columns (12 bytes for each), the hidden sums, and what all
// need of the gates and the maps.
//
// Shared memory: the block's rows of x; sums, maxima and places of its rows for each slice; the same (then gates) of
// all rows, and of all columns for each group of rows; the hidden sums; ws and bs.
#pragma once

#include "convolution.cuh"
#include "mlp.cuh"

namespace cbam::cuda {

template <class T, bool channels_last, class B>
__device__ __forceinline__ void forward_image(const Problem& p, const OnChip& o, const B& blocks, int64_t n) {
    CBAM_SHARED(shared);
    const int C = int(p.C), HW = int(p.HW()), kk = int(p.k * p.k), rank = blocks.rank();
    const Part row_part = part(o.first_row, rank), column_part = part(o.first_column, rank);
    const Part channels = channels_last ? column_part : row_part, pixels = channels_last ? row_part : column_part;
    const int rows = row_part.last - row_part.first, elements = rows * o.cols;
    const int64_t start = n * C * HW + int64_t(row_part.first) * o.cols;

    T* x = reinterpret_cast<T*>(shared + o.x);
    const Pools row_parts(shared + o.row_parts, o.slices * o.most_rows);
    const Pools row_side(shared + o.row_side, o.side_rows, channels_last ? 0 : row_part.first);
    const Pools column_side(shared + o.column_side, o.groups * o.cols);
    const Pools channel = channels_last ? column_side : row_side, pixel = channels_last ? row_side : column_side;
    float *hidden = reinterpret_cast<float*>(shared + o.hidden), *window = reinterpret_cast<float*>(shared + o.window);
    float* saved = static_cast<float*>(p.saved) + n * p.saved_size();
    float* saved_maps = saved + p.saved_size() - 3 * HW;
    int32_t *index = p.index + n * p.index_size(), *index_maps = index + (p.channel ? C : 0);

    load_rows(static_cast<const T*>(p.x) + start, elements, x);
    if (p.ws)
        for (int i = int(threadIdx.x); i < 2 * kk; i += kOnChipThreads)
            window[i] = static_cast<const float*>(p.ws)[p.tap(i)];
    if (p.bs && threadIdx.x == 0) window[2 * kk] = *static_cast<const float*>(p.bs);
    blocks.sync();  // no block writes to another that has not begun

    // Pools over the columns of each row, of x times what factor gives for the column. To all blocks where the rows
    // are pixels, since the convolution looks beyond its own.
    auto pool_rows = [&](float* means, int32_t* places, auto if_gated, const float* factor) {
        constexpr bool gated = decltype(if_gated)::value;
        const auto value = [&](int i, int col) {
            return gated ? to_acc(x[i + col]) * factor[col] : to_acc(x[i + col]);
        };
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            reduce_rows<Pooled, W>(
                o, rows,
                [&](Pooled(&a)[kBatch], auto start, int, int first, int last, int step) {
#pragma unroll 1
                    for (int col = first; col < last; col += step) {
                        float f[W];
                        if constexpr (gated) load_numbers(factor + col, f);
#pragma unroll
                        for (int i = 0; i < kBatch; ++i) {
                            Packed<T, W> elements;
                            elements.load(x + start(i) + col);
                            float v[W];
                            elements.unpack(v);
#pragma unroll
                            for (int j = 0; gated && j < W; ++j) v[j] *= f[j];
                            const float greatest = gated ? greatest_of(v) : greatest_of(elements);
                            a[i].add(sum_of(v), greatest, col);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < kBatch; ++i) {
                        if (!a[i].has_nan()) continue;
                        for (int col = first; col < last; col += step)
#pragma unroll 1
                            for (int j = 0; j < W; ++j) a[i].look_for_nan(value(start(i), col + j), col + j);
                    }
                },
                [&](int i, const Pooled& a) { row_parts.put(i, a); });
        });
        __syncthreads();
        for (int row = int(threadIdx.x); row < rows; row += kOnChipThreads) {
            const int i = row_part.first + row;
            const Pooled a = join_slices<Pooled>(o, rows, row, [&](int at) { return row_parts.get(at); });
            const float mean = a.sum / o.cols, most = a.most.value;
            int place = a.place();
            while (most > -INFINITY && value(row * o.cols, place) != most) ++place;
            means[i] = mean;
            means[o.rows + i] = most;
            places[i] = place;
            if (channels_last) {
                store_to_all(blocks, row_side.sum + i, mean);
                store_to_all(blocks, row_side.most + i, most);
            } else {
                row_side.sum[i] = mean;
                row_side.most[i] = most;
            }
        }
    };
    // The same for each column, over rows: each block does all columns of its rows, and then joins its part of them. A
    // group of threads takes kBatch rows at a time, of whose maximum the place is that of the first of them.
    auto pool_columns = [&](float* means, int32_t* places, auto if_gated, const float* factor) {
        constexpr bool gated = decltype(if_gated)::value;
        const auto value = [&](int row, int col) {
            return gated ? to_acc(x[row * o.cols + col]) * factor[row_part.first + row] : to_acc(x[row * o.cols + col]);
        };
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            reduce_columns<Pooled, W>(
                o.cols, o.groups,
                [&](Pooled(&a)[W], int group, int col) {
                    const auto add = [&](auto count, int row) {
                        constexpr int N = decltype(count)::size;
                        Packed<T, W> words[N];
                        float total[W] = {}, greatest[W];
#pragma unroll
                        for (int i = 0; i < N; ++i) words[i].load(x + (row + i) * o.cols + col);
                        if constexpr (!gated) greatest_of(words, greatest);
#pragma unroll
                        for (int i = 0; i < N; ++i) {
                            float v[W];
                            words[i].unpack(v);
#pragma unroll
                            for (int j = 0; j < W; ++j) {
                                if constexpr (gated) {
                                    v[j] *= factor[row_part.first + row + i];
                                    greatest[j] = i ? fmaxf(greatest[j], v[j]) : v[j];
                                }
                                total[j] = i ? total[j] + v[j] : v[j];
                            }
                        }
#pragma unroll
                        for (int j = 0; j < W; ++j) a[j].add(total[j], greatest[j], row_part.first + row);
                    };
                    int row = group * kBatch;
#pragma unroll 1
                    for (; row + kBatch <= rows; row += o.groups * kBatch) add(Word<kBatch>{}, row);
#pragma unroll 1
                    for (; row < rows; ++row) add(Word<1>{}, row);
                    bool has_nan = false;
#pragma unroll
                    for (int j = 0; j < W; ++j) has_nan |= a[j].has_nan();
                    if (!has_nan) return;
#pragma unroll
                    for (int j = 0; j < W; ++j)
                        for (int first = group * kBatch; first < rows; first += o.groups * kBatch)
                            for (row = first; row < min(first + kBatch, rows); ++row)
                                a[j].look_for_nan(value(row, col + j), row_part.first + row);
                },
                [&](int i, const auto& a) { column_side.put(i, a); }, [&](int i) { return column_side.get(i); });
        });
        // This block's place of each of its columns, while it has the rows.
        __syncthreads();
        for (int col = int(threadIdx.x); col < o.cols; col += kOnChipThreads) {
            const Maximum<float> most = column_side.get(col).most;
            int place = most.index;
            if (place == Pooled::kNowhere || most.value != most.value) continue;
            while (value(place - row_part.first, col) != most.value) ++place;
            column_side.place()[col] = place;
        }
        blocks.sync();
        for (int col = column_part.first + int(threadIdx.x); col < column_part.last; col += kOnChipThreads) {
            const Pooled a = join_blocks<Pooled>(blocks, [&](int rank) { return column_side.get(blocks, rank, col); });
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
        }
    };

    if (p.w1) {
        if (channels_last) pool_columns(saved, index, std::false_type{}, nullptr);
        else pool_rows(saved, index, std::false_type{}, nullptr);
        __syncthreads();
        channel_gate(p, o, blocks, channels, channel.sum, channel.most, hidden, saved + 3 * C, [&](int c, float g) {
            if (channels_last) store_to_all(blocks, channel.gate + c, g);
            else channel.gate[c] = g;
        });
        blocks.sync();
    } else {
        const Part held = channels_last ? Part{0, C} : channels;
        for (int c = held.first + int(threadIdx.x); c < held.last; c += kOnChipThreads) channel.gate[c] = 1;
        __syncthreads();
    }
    for (int c = channels.first + int(threadIdx.x); p.channel && c < channels.last; c += kOnChipThreads)
        saved[2 * C + c] = channel.gate[c];

    if (p.ws) {
        if (channels_last) pool_rows(saved_maps, index_maps, std::true_type{}, channel.gate);
        else pool_columns(saved_maps, index_maps, std::true_type{}, channel.gate);
        blocks.sync();
        const float bias = p.bs ? window[2 * kk] : 0;
        convolve<float, false>(
            p, pixels, window,
            [&](float& a, float of_mean, float of_most, int q) {
                a += of_mean * pixel.sum[q] + of_most * pixel.most[q];
            },
            [&](int q, float a) {
                const float s = p.y ? sigmoid(a + bias) : a + bias;
                if (channels_last) pixel.gate[q] = s;
                else store_to_all(blocks, pixel.gate + q, s);
            });
        blocks.sync();
    } else {
        for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) pixel.gate[q] = 1;
        __syncthreads();
    }
    for (int q = pixels.first + int(threadIdx.x); p.spatial && q < pixels.last; q += kOnChipThreads)
        saved_maps[2 * HW + q] = pixel.gate[q];
    if (!p.y) return;

    const T* residual = p.residual ? static_cast<const T*>(p.residual) + start : nullptr;
    T* y = static_cast<T*>(p.y) + start;
    const auto apply = [&](auto if_residual, auto if_relu) {
        constexpr bool with_residual = decltype(if_residual)::value, with_relu = decltype(if_relu)::value;
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            const int words = o.cols / W;
            for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
                const int col = i % words * W;
                float of_column[W];
                load_numbers(column_side.gate + col, of_column);
#pragma unroll 4
                for (int row = i / words; row < rows; row += o.groups) {
                    const int at = row * o.cols + col;
                    const float of_row = row_side.gate[row_part.first + row];
                    float v[W];
                    [[maybe_unused]] float add[W];
                    load<W>(x + at, v);
                    if constexpr (with_residual) load<W>(residual + at, add);
                    Packed<T, W> result;
#pragma unroll
                    for (int j = 0; j < W; ++j) {
                        v[j] = v[j] * of_row * of_column[j];
                        if constexpr (with_residual) v[j] += add[j];
                        result.v[j] = from_acc<T>(v[j]);
                    }
                    if constexpr (with_relu) relu(result);
                    result.store(y + at);
                }
            }
        });
    };
    if (residual && p.relu) apply(std::true_type{}, std::true_type{});
    else if (residual) apply(std::true_type{}, std::false_type{});
    else if (p.relu) apply(std::false_type{}, std::true_type{});
    else apply(std::false_type{}, std::false_type{});
}

// Block b of the grid is one of those of image b / cluster.
template <class T, bool channels_last, bool clustered> __global__ void __launch_bounds__(kOnChipThreads, 2)
    cbam_fwd_on_chip_kernel(const Problem p, const OnChip o) {
    if constexpr (!clustered || kClusters)
        forward_image<T, channels_last>(p, o, Blocks<clustered>{}, int64_t(blockIdx.x) / o.cluster);
}

}  // namespace cbam::cuda
