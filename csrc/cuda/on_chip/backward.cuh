// Backward of one image by one block, or by one cluster of blocks, with x and dy in shared memory.
//
// x and dy are read once and dx is written once; behind a ReLU y is read, too, and the masked dy written to dresidual.
// The rest: w1 and w2 once an image; ws, and what saved and index have of the gates, maps and maxima, once a block; the
// image's part of the parameter gradients is written once. Between the blocks go the sums over the columns (4 bytes for
// each), the hidden sums, the window's sums, and what all need of the gradients.
//
// Shared memory: the block's rows of x and of dy; 16 bytes for each channel and each pixel; the sums over each slice of
// its rows, and those over columns, of which the gradient of the convolution and that of the gate before its sigmoid
// take the room; the hidden sums, the window's sums, ws.
#pragma once

#include "convolution.cuh"
#include "mlp.cuh"

namespace cbam::cuda {

// Of channels or pixels: the gate, the gradients of the mean and of the maximum, and where that maximum is. A pixel's
// mean and maximum themselves are here until their gradients take their place.
struct SharedSide {
    float *gate, *mean, *most;
    int32_t* place;

    __device__ SharedSide(unsigned char* shared, int n)
        : gate(reinterpret_cast<float*>(shared)),
          mean(gate + n),
          most(mean + n),
          place(reinterpret_cast<int32_t*>(most + n)) {}
};

// The same for W of the columns, in registers.
template <int W> struct Columns {
    float gate[W], mean[W], most[W];
    int32_t place[W];

    __device__ __forceinline__ Columns(const SharedSide& side, int col) {
        load_numbers(side.gate + col, gate);
        load_numbers(side.mean + col, mean);
        load_numbers(side.most + col, most);
        float bits[W];
        load_numbers(reinterpret_cast<const float*>(side.place) + col, bits);
        memcpy(place, bits, sizeof bits);
    }
};

// Elements of a word of 8 bytes, where more would not fit into the registers.
template <class T, int W> constexpr int kNarrower = W == 1 ? 1 : 8 / int(sizeof(T));

// A block's piece of dy, with the zeros of the ReLU.
template <class T>
__device__ __forceinline__ void load_masked(const T* dy, const T* y, int elements, T* to, T* masked) {
    for (int i = int(threadIdx.x) * kVector<T>; i < elements; i += kOnChipThreads * kVector<T>) {
        Vector<T> d = load_vector(dy + i);
        const Vector<T> v = load_vector(y + i);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e)
            if (to_acc(v.v[e]) <= 0) d.v[e] = from_acc<T>(0);
        d.store(to + i);
        if (masked) d.store(masked + i);
    }
}

template <class T, bool channels_last, class B>
__device__ __forceinline__ void backward_image(const Problem& p, const OnChip& o, const B& blocks, int64_t n) {
    CBAM_SHARED(shared);
    const int C = int(p.C), R = int(p.R), HW = int(p.HW()), kk = int(p.k * p.k), rank = blocks.rank();
    const Part row_part{o.first_row[rank], o.first_row[rank + 1]};
    const Part column_part{o.first_column[rank], o.first_column[rank + 1]};
    const Part channels = channels_last ? column_part : row_part, pixels = channels_last ? row_part : column_part;
    const int rows = row_part.last - row_part.first, elements = rows * o.cols;
    const int64_t start = n * C * HW + int64_t(row_part.first) * o.cols;

    T *x = reinterpret_cast<T*>(shared + o.x), *dy = reinterpret_cast<T*>(shared + o.dy);
    const SharedSide channel(shared + o.channels, C), pixel(shared + o.pixels, HW);
    const SharedSide &of_rows = channels_last ? pixel : channel, &of_columns = channels_last ? channel : pixel;
    float* row_parts = reinterpret_cast<float*>(shared + o.row_parts);
    float *scratch = reinterpret_cast<float*>(shared + o.scratch),
          *hidden = reinterpret_cast<float*>(shared + o.hidden);
    float *taps = reinterpret_cast<float*>(shared + o.taps), *window = reinterpret_cast<float*>(shared + o.window);

    load_rows(static_cast<const T*>(p.x) + start, elements, x);
    if (p.relu)
        load_masked(static_cast<const T*>(p.dy) + start, static_cast<const T*>(p.y) + start, elements, dy,
                    p.dresidual ? static_cast<T*>(p.dresidual) + start : nullptr);
    else if (p.dy) load_rows(static_cast<const T*>(p.dy) + start, elements, dy);
    const float *saved = static_cast<const float*>(p.saved) + n * p.saved_size(),
                *maps = saved + p.saved_size() - 3 * HW;
    const float* s = p.s ? static_cast<const float*>(p.s) + n * HW : maps + 2 * HW;
    const int32_t *index = p.index + n * p.index_size(), *index_maps = index + (p.channel ? C : 0);
    for (int c = int(threadIdx.x); c < C; c += kOnChipThreads) {
        channel.gate[c] = p.channel ? saved[2 * C + c] : 1, channel.place[c] = p.channel ? index[c] : 0;
        channel.mean[c] = channel.most[c] = 0;
    }
    for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) {
        pixel.gate[q] = p.spatial ? s[q] : 1, pixel.place[q] = p.spatial ? index_maps[q] : 0;
        pixel.mean[q] = p.spatial ? maps[q] : 0, pixel.most[q] = p.spatial ? maps[HW + q] : 0;
    }
    if (p.ws)
        for (int i = int(threadIdx.x); i < 2 * kk; i += kOnChipThreads) window[i] = static_cast<const float*>(p.ws)[i];
    blocks.sync();  // no block writes to another that has not begun

    // The sum over channels of g x dy, and from it dz, the gradient of the convolution's result.
    float* dz = scratch;
    const auto finish_pixel = [&](int q, float ds) {
        const float gate = pixel.gate[q];
        store_to_all(blocks, dz + q, ds * (gate * (1 - gate)));
    };
    if (p.ws && p.given) {
        const float* ds = p.ds ? static_cast<const float*>(p.ds) + n * HW : nullptr;
        for (int q = int(threadIdx.x); q < HW; q += kOnChipThreads) dz[q] = ds ? ds[q] : 0;
    } else if (p.ws) {
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            if constexpr (channels_last) {
                constexpr int V = kNarrower<T, W>;
                reduce_rows<float, V>(
                    o, rows,
                    [&](float (&a)[kBatch], auto start, int, int first, int last, int step) {
                        for (int col = first; col < last; col += step) {
                            float g[V], v[V], d[V];
                            load_numbers(channel.gate + col, g);
#pragma unroll
                            for (int i = 0; i < kBatch; ++i) {
                                load<V>(x + start(i) + col, v);
                                load<V>(dy + start(i) + col, d);
#pragma unroll
                                for (int j = 0; j < V; ++j) a[i] += g[j] * (v[j] * d[j]);
                            }
                        }
                    },
                    [&](int i, float a) { row_parts[i] = a; });
            } else {
                reduce_columns<float, W>(
                    o.cols, o.groups,
                    [&](float (&a)[W], int group, int col) {
#pragma unroll 2
                        for (int row = group; row < rows; row += o.groups) {
                            float v[W], d[W];
                            load<W>(x + row * o.cols + col, v);
                            load<W>(dy + row * o.cols + col, d);
                            const float g = channel.gate[row_part.first + row];
#pragma unroll
                            for (int j = 0; j < W; ++j) a[j] += g * (v[j] * d[j]);
                        }
                    },
                    [&](int i, const auto& a) { store_numbers(scratch + i, a); }, [&](int i) { return scratch[i]; });
            }
        });
        if (channels_last) {
            __syncthreads();
            for (int row = int(threadIdx.x); row < rows; row += kOnChipThreads)
                finish_pixel(row_part.first + row,
                             join_slices<float>(o, rows, row, [&](int i) { return row_parts[i]; }));
        } else {
            blocks.sync();
            for (int q = column_part.first + int(threadIdx.x); q < column_part.last; q += kOnChipThreads)
                finish_pixel(q, join_blocks<float>(blocks, [&](int rank) { return *blocks.of(rank, scratch + q); }));
        }
    }

    // dws and dbs, and the gradients of the two maps.
    if (p.ws) {
        blocks.sync();
        window_sums(p, o, pixels, dz, pixel.mean, pixel.most, taps);
        blocks.sync();
        const int sums = 2 * kk + 1;
        float* partial = static_cast<float*>(p.partial) + n * p.partial_size() + C + 3 * R;
        const Part own{sums * rank / blocks.count(), sums * (rank + 1) / blocks.count()};
        for (int i = own.first + int(threadIdx.x); i < own.last; i += kOnChipThreads)
            partial[i] = join_blocks<float>(blocks, [&](int from) {
                float sum = 0;
                for (int slice = 0; slice < o.map_slices; ++slice) sum += *blocks.of(from, taps + slice * sums + i);
                return sum;
            });
        convolve<Pair, true>(
            p, pixels, window,
            [&](Pair& a, float of_mean, float of_most, int q) {
                a.mean += of_mean * dz[q];
                a.most += of_most * dz[q];
            },
            [&](int q, const Pair& a) {
                if (channels_last) {
                    pixel.mean[q] = a.mean / C;
                    pixel.most[q] = a.most;
                } else {
                    store_to_all(blocks, pixel.mean + q, a.mean / C);
                    store_to_all(blocks, pixel.most + q, a.most);
                }
            });
        blocks.sync();
    }

    // dg: the sum over pixels of x times the gradient of g x; from it, what the pools' gradients are.
    if (p.w1) {
        float* dlogit = scratch;
        const float* dg = p.given && p.dg ? static_cast<const float*>(p.dg) + n * C : nullptr;
        const auto finish_channel = [&](int c, float sum) {
            const float g = channel.gate[c];
            dlogit[c] = (sum + (dg ? dg[c] : 0)) * (g * (1 - g));
        };
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            if constexpr (channels_last) {
                reduce_columns<float, W>(
                    o.cols, o.groups,
                    [&](float (&a)[W], int group, int col) {
                        for (int row = group; row < rows; row += o.groups) {
                            const int q = row_part.first + row, place = pixel.place[q];
                            const float mean = pixel.mean[q], most = pixel.most[q], gate = p.given ? 0 : pixel.gate[q];
                            float v[W], d[W] = {};
                            load<W>(x + row * o.cols + col, v);
                            if (!p.given) load<W>(dy + row * o.cols + col, d);
#pragma unroll
                            for (int j = 0; j < W; ++j)
                                a[j] += v[j] * (d[j] * gate + mean + (place == col + j ? most : 0));
                        }
                    },
                    [&](int i, const auto& a) { store_numbers(scratch + i, a); }, [&](int i) { return scratch[i]; });
            } else {
                constexpr int V = kNarrower<T, W>;
                reduce_rows<float, V>(
                    o, rows,
                    [&](float (&a)[kBatch], auto start, int row, int first, int last, int step) {
                        for (int col = first; col < last; col += step) {
                            const Columns<V> at(pixel, col);
#pragma unroll
                            for (int i = 0; i < kBatch; ++i) {
                                float v[V], d[V] = {};
                                load<V>(x + start(i) + col, v);
                                if (!p.given) load<V>(dy + start(i) + col, d);
                                const int c = row_part.first + row + i;
#pragma unroll
                                for (int j = 0; j < V; ++j)
                                    a[i] += v[j] * ((p.given ? 0 : d[j] * at.gate[j]) + at.mean[j] +
                                                    (at.place[j] == c ? at.most[j] : 0));
                            }
                        }
                    },
                    [&](int i, float a) { row_parts[i] = a; });
            }
        });
        if (channels_last) {
            blocks.sync();
            for (int c = column_part.first + int(threadIdx.x); c < column_part.last; c += kOnChipThreads)
                finish_channel(c, join_blocks<float>(blocks, [&](int from) { return *blocks.of(from, scratch + c); }));
        } else {
            __syncthreads();
            for (int row = int(threadIdx.x); row < rows; row += kOnChipThreads)
                finish_channel(row_part.first + row,
                               join_slices<float>(o, rows, row, [&](int i) { return row_parts[i]; }));
        }
        __syncthreads();
        channel_gate_backward(p, o, blocks, n, channels, dlogit, hidden, [&](int c, float mean, float most) {
            if (channels_last) {
                store_to_all(blocks, channel.mean + c, mean);
                store_to_all(blocks, channel.most + c, most);
            } else {
                channel.mean[c] = mean;
                channel.most[c] = most;
            }
        });
        blocks.sync();
    }

    // dx: a thread keeps what belongs to its columns while it goes down the rows.
    T* dx = static_cast<T*>(p.dx) + start;
    with_word<T>(o.cols, [&](auto word) {
        constexpr int W = decltype(word)::size;
        const int words = o.cols / W;
        for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
            const int col = i % words * W;
            const Columns<W> column(of_columns, col);
            for (int row = i / words; row < rows; row += o.groups) {
                const int at = row_part.first + row, place = of_rows.place[at];
                const float gate = of_rows.gate[at], mean = of_rows.mean[at], most = of_rows.most[at];
                float v[W] = {};
                if (p.dy) load<W>(dy + row * o.cols + col, v);
#pragma unroll
                for (int j = 0; j < W; ++j) {
                    const bool of_pixel = (channels_last ? place : column.place[j]) == (channels_last ? col + j : at);
                    const bool of_channel = (channels_last ? column.place[j] : place) == (channels_last ? at : col + j);
                    const float ds = channels_last ? gate : column.gate[j], g = channels_last ? column.gate[j] : gate;
                    v[j] = p.dy ? v[j] * ds : 0;
                    v[j] += (channels_last ? mean : column.mean[j]) +
                            (of_pixel ? (channels_last ? most : column.most[j]) : 0);
                    v[j] = v[j] * g + (channels_last ? column.mean[j] : mean) +
                           (of_channel ? (channels_last ? column.most[j] : most) : 0);
                }
                store<W>(dx + row * o.cols + col, v);
            }
        }
    });
}

// Block b of the grid is one of those of image b / cluster.
template <class T, bool channels_last, bool clustered> __global__ void __launch_bounds__(kOnChipThreads, 2)
    cbam_bwd_on_chip_kernel(const Problem p, const OnChip o) {
    if constexpr (!clustered || kClusters)
        backward_image<T, channels_last>(p, o, Blocks<clustered>{}, int64_t(blockIdx.x) / o.cluster);
}

}  // namespace cbam::cuda
