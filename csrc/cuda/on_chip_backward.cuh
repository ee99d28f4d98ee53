// Backward of one image by one block, or by one cluster of blocks, with x and dy in shared memory.
//
// x and dy are read once and dx is written once; behind a ReLU y is read, too, and the masked dy written to dresidual.
// The rest: w1 and w2 once an image; ws, and what saved and index have of the gates, maps and maxima, once a block; the
// image's part of the parameter gradients is written once. Between the blocks go the sums over the columns (4 bytes for
// each group of rows and column), the hidden sums, the window's sums, and what all need of the gradients.
//
// Shared memory: the block's rows of x and of dy; 16 bytes for each channel and each pixel; the sums over columns, of
// which the gradient of the convolution and that of the gate before its sigmoid take the room; the hidden sums, the
// window's sums, ws.
#pragma once

#include "on_chip_gate.cuh"
#include "on_chip_map.cuh"

namespace cbam::cuda {

// Of a channel or a pixel: its gate, the gradients of its mean and of its maximum, and where that maximum is. A pixel's
// mean and maximum themselves are here until their gradients take their place.
struct alignas(16) Point {
    float gate, mean, most;
    int32_t place;
};

// All of a point, by one access: neighbours then stay out of each other's banks.
__device__ __forceinline__ Point load_point(const Point* p) {
    const uint4 bits = *reinterpret_cast<const uint4*>(p);
    Point point;
    memcpy(&point, &bits, sizeof bits);
    return point;
}

// A block's piece of dy, with the zeros of the ReLU.
template <class T>
__device__ __forceinline__ void load_masked(const T* dy, const T* y, int elements, T* to, T* masked) {
    for (int i = int(threadIdx.x) * kVector<T>; i < elements; i += kOnChipThreads * kVector<T>) {
        Vector<T> d = load_vector(dy + i);
        const Vector<T> v = load_vector(y + i);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e)
            if (to_acc(v.v[e]) <= 0) d.v[e] = from_acc<T>(0);
        store_vector(to + i, d);
        if (masked) store_vector(masked + i, d);
    }
}

template <class T, bool channels_last, class B>
__device__ __forceinline__ void backward_image(const Problem& p, const OnChip& o, const B& blocks, int64_t n) {
    CBAM_SHARED(shared);
    const int C = int(p.C), R = int(p.R), HW = int(p.HW()), kk = int(p.k * p.k), rank = blocks.rank();
    const Part row_part = part_of(rank, blocks.count(), o.rows, o.unit);
    const Part column_part = part_of(rank, blocks.count(), o.cols, 1);
    const Part channels = channels_last ? column_part : row_part, pixels = channels_last ? row_part : column_part;
    const int rows = row_part.last - row_part.first, elements = rows * o.cols;
    const int64_t start = n * C * HW + int64_t(row_part.first) * o.cols;

    T *x = reinterpret_cast<T*>(shared + o.x), *dy = reinterpret_cast<T*>(shared + o.dy);
    Point *channel = reinterpret_cast<Point*>(shared + o.channels),
          *pixel = reinterpret_cast<Point*>(shared + o.pixels);
    float *scratch = reinterpret_cast<float*>(shared + o.scratch),
          *hidden = reinterpret_cast<float*>(shared + o.hidden);
    float *taps = reinterpret_cast<float*>(shared + o.taps), *window = reinterpret_cast<float*>(shared + o.window);

    load_rows(static_cast<const T*>(p.x) + start, elements, x);
    if (p.relu)
        load_masked(static_cast<const T*>(p.dy) + start, static_cast<const T*>(p.y) + start, elements, dy,
                    p.dresidual ? static_cast<T*>(p.dresidual) + start : nullptr);
    else if (p.dy) load_rows(static_cast<const T*>(p.dy) + start, elements, dy);
    const float *saved = static_cast<const float*>(p.saved) + n * p.saved_size(), *maps = saved + 3 * C + 2 * R;
    const float* s = p.s ? static_cast<const float*>(p.s) + n * HW : maps + 2 * HW;
    const int32_t* index = p.index + n * (C + HW);
    // Unrolled, these two would be where registers spill.
#pragma unroll 1
    for (int c = int(threadIdx.x); c < C; c += kOnChipThreads) channel[c] = {saved[2 * C + c], 0, 0, index[c]};
#pragma unroll 1
    for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) pixel[q] = {s[q], maps[q], maps[HW + q], index[C + q]};
    if (p.ws)
        for (int i = int(threadIdx.x); i < 2 * kk; i += kOnChipThreads) window[i] = static_cast<const float*>(p.ws)[i];
    blocks.sync();  // no block writes to another that has not begun

    // The sum over channels of g x dy, and from it dz, the gradient of the convolution's result.
    float* dz = scratch;
    const auto finish_pixel = [&](int q, float ds) {
        const float gate = pixel[q].gate;
        store_to_all(blocks, dz + q, ds * (gate * (1 - gate)));
    };
    if (p.ws && p.given) {
        const float* ds = p.ds ? static_cast<const float*>(p.ds) + n * HW : nullptr;
        for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) dz[q] = ds ? ds[q] : 0;
    } else if (p.ws) {
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            if constexpr (channels_last) {
                reduce_rows<Sum, W>(
                    rows, o.cols, o.lanes,
                    [&](Sum& a, int row, int col) {
                        float v[W], d[W];
                        load_word(x + row * o.cols + col, v);
                        load_word(dy + row * o.cols + col, d);
                        for (int i = 0; i < W; ++i) a.value += channel[col + i].gate * (v[i] * d[i]);
                    },
                    [&](int row, const Sum& a) { finish_pixel(row_part.first + row, a.value); });
            } else {
                reduce_columns<Sum, W>(
                    rows, o.cols, o.groups,
                    [&](Sum(&a)[W], int row, int col) {
                        float v[W], d[W];
                        load_word(x + row * o.cols + col, v);
                        load_word(dy + row * o.cols + col, d);
                        const float g = channel[row_part.first + row].gate;
                        for (int i = 0; i < W; ++i) a[i].value += g * (v[i] * d[i]);
                    },
                    [&](int i, const Sum& a) { scratch[i] = a.value; });
            }
        });
        if (!channels_last) {
            blocks.sync();
            join_columns<Sum>(
                blocks, column_part, o.cols, o.groups,
                [&](int from, int i) { return Sum{*blocks.of(from, scratch + i)}; },
                [&](int q, const Sum& a) { finish_pixel(q, a.value); });
        }
    }

    // dws and dbs, and the gradients of the two maps.
    if (p.ws) {
        blocks.sync();
        window_sums(p, o, pixels, dz, taps, [&](int map, int q) { return map ? pixel[q].most : pixel[q].mean; });
        blocks.sync();
        const int sums = 2 * kk + 1;
        float* partial = static_cast<float*>(p.partial) + n * p.partial_size() + C + 3 * R;
        join_columns<Sum>(
            blocks, part_of(rank, blocks.count(), sums, 1), sums, o.map_slices,
            [&](int from, int i) { return Sum{*blocks.of(from, taps + i)}; },
            [&](int i, const Sum& a) { partial[i] = a.value; });
        convolve<Pair>(
            p, pixels,
            [&](Pair& a, int tap,
                int q) {  // what the window gave a pixel comes back through it, turned by half a circle
                a.mean += window[kk - 1 - tap] * dz[q];
                a.most += window[2 * kk - 1 - tap] * dz[q];
            },
            [&](int q, const Pair& a) {
                Point v = load_point(pixel + q);
                v.mean = a.mean / C;
                v.most = a.most;
                if (channels_last) pixel[q] = v;
                else store_to_all(blocks, pixel + q, v);
            });
        blocks.sync();
    }

    // dg: the sum over pixels of x times the gradient of g x; from it, what the pools' gradients are.
    if (p.w1) {
        float* dlogit = scratch;
        const float* dg = p.given && p.dg ? static_cast<const float*>(p.dg) + n * C : nullptr;
        const auto product = [&](float v, float d, const Point& at, int c) {
            return v * ((p.given ? 0 : d * at.gate) + at.mean + (at.place == c ? at.most : 0));
        };
        const auto finish_channel = [&](int c, float sum) {
            const float g = channel[c].gate;
            dlogit[c] = (sum + (dg ? dg[c] : 0)) * (g * (1 - g));
        };
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            if constexpr (channels_last) {
                reduce_columns<Sum, W>(
                    rows, o.cols, o.groups,
                    [&](Sum(&a)[W], int row, int col) {
                        float v[W], d[W] = {};
                        load_word(x + row * o.cols + col, v);
                        if (!p.given) load_word(dy + row * o.cols + col, d);
                        const Point at = load_point(pixel + row_part.first + row);
                        for (int i = 0; i < W; ++i) a[i].value += product(v[i], d[i], at, col + i);
                    },
                    [&](int i, const Sum& a) { scratch[i] = a.value; });
            } else {
                reduce_rows<Sum, W>(
                    rows, o.cols, o.lanes,
                    [&](Sum& a, int row, int col) {
                        float v[W], d[W] = {};
                        load_word(x + row * o.cols + col, v);
                        if (!p.given) load_word(dy + row * o.cols + col, d);
                        for (int i = 0; i < W; ++i)
                            a.value += product(v[i], d[i], load_point(pixel + col + i), row_part.first + row);
                    },
                    [&](int row, const Sum& a) { finish_channel(row_part.first + row, a.value); });
            }
        });
        if (channels_last) {
            blocks.sync();
            join_columns<Sum>(
                blocks, column_part, o.cols, o.groups,
                [&](int from, int i) { return Sum{*blocks.of(from, scratch + i)}; },
                [&](int c, const Sum& a) { finish_channel(c, a.value); });
        }
        __syncthreads();
        channel_gate_backward(p, o, blocks, n, channels, dlogit, hidden, [&](int c, float mean, float most) {
            Point v = load_point(channel + c);
            v.mean = mean;
            v.most = most;
            if (channels_last) store_to_all(blocks, channel + c, v);
            else channel[c] = v;
        });
        blocks.sync();
    }

    // dx takes the place of x: a thread keeps what belongs to its columns while it goes down the rows.
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::size;
        const Point *of_rows = channels_last ? pixel : channel, *of_columns = channels_last ? channel : pixel;
        const int words = o.cols / W;
        for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
            const int col = i % words * W;
            Point of_column[W];
            for (int j = 0; j < W; ++j) of_column[j] = load_point(of_columns + col + j);
            for (int row = i / words; row < rows; row += o.groups) {
                const Point of_row = load_point(of_rows + row_part.first + row);
                float v[W] = {};
                if (p.dy) load_word(dy + row * o.cols + col, v);
                for (int j = 0; j < W; ++j) {
                    const Point &at_pixel = channels_last ? of_row : of_column[j],
                                &at_channel = channels_last ? of_column[j] : of_row;
                    const int c = channels_last ? col + j : row_part.first + row,
                              q = channels_last ? row_part.first + row : col + j;
                    v[j] = p.dy ? v[j] * at_pixel.gate : 0;
                    v[j] += at_pixel.mean + (at_pixel.place == c ? at_pixel.most : 0);
                    v[j] = v[j] * at_channel.gate + at_channel.mean + (at_channel.place == q ? at_channel.most : 0);
                }
                store_word(x + row * o.cols + col, v);
            }
        }
    });
    __syncthreads();
    T* dx = static_cast<T*>(p.dx) + start;
    for (int i = int(threadIdx.x) * kVector<T>; i < elements; i += kOnChipThreads * kVector<T>)
        store_vector(dx + i, load_vector(x + i));
}

// Block b of the grid is one of those of image b / cluster.
template <class T, bool channels_last, bool clustered> __global__ void __launch_bounds__(kOnChipThreads, 2)
    on_chip_backward_kernel(const Problem p, const OnChip o) {
    if constexpr (!clustered || kClusters)
        backward_image<T, channels_last>(p, o, Blocks<clustered>{}, int64_t(blockIdx.x) / o.cluster);
}

}  // namespace cbam::cuda
