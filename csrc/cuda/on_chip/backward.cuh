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

#include "../common/max_terms.cuh"
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

// Elements of a word of 8 bytes, where more would not fit into the registers.
template <class T, int W> constexpr int kNarrower = W == 1 ? 1 : 8 / int(sizeof(T));

// A block's piece of dy, with the zeros of the ReLU.
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

template <class T, bool channels_last, class B>
__device__ __forceinline__ void backward_image(const Problem& p, const OnChip& o, const B& blocks, int64_t n) {
    CBAM_SHARED(shared);
    const int C = int(p.C), R = int(p.R), HW = int(p.HW()), kk = int(p.k * p.k), rank = blocks.rank();
    const Part row_part = part(o.first_row, rank), column_part = part(o.first_column, rank);
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
    float* terms = reinterpret_cast<float*>(shared + o.terms);

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
        for (int i = int(threadIdx.x); i < 2 * kk; i += kOnChipThreads)
            window[i] = static_cast<const float*>(p.ws)[p.tap(i)];
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
                reduce_rows<float, W>(
                    o, rows,
                    [&](float (&a)[kBatch], auto start, int, int first, int last, int step) {
#pragma unroll 1
                        for (int col = first; col < last; col += step) {
                            float g[W], v[W], d[W];
                            load_numbers(channel.gate + col, g);
#pragma unroll
                            for (int i = 0; i < kBatch; ++i) {
                                load<W>(x + start(i) + col, v);
                                load<W>(dy + start(i) + col, d);
#pragma unroll
                                for (int j = 0; j < W; ++j) a[i] += g[j] * (v[j] * d[j]);
                            }
                        }
                    },
                    [&](int i, float a) { row_parts[i] = a; });
            } else {
                reduce_columns<float, W>(
                    o.cols, o.groups,
                    [&](float (&a)[W], int group, int col) {
#pragma unroll 4
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

    // dg: the sum over pixels of x times the gradient of g x; from it, what the pools' gradients are. What comes
    // through the maxima is summed by itself.
    if (p.w1) {
        float* dlogit = scratch;
        const float* dg = p.given && p.dg ? static_cast<const float*>(p.dg) + n * C : nullptr;
        const auto finish_channel = [&](int c, float sum) {
            const float g = channel.gate[c];
            dlogit[c] = (sum + (dg ? dg[c] : 0)) * (g * (1 - g));
        };
        const Part own{channels_last ? 0 : channels.first, channels_last ? C : channels.last};  // of which it has x
        const int count = own.last - own.first, warp = int(threadIdx.x) / kWarp;
        for (int i = int(threadIdx.x); i < o.term_parts * count; i += kOnChipThreads) terms[i] = 0;
        __syncthreads();
        const auto key = [&](int q) {
            const int c = pixel.place[q];
            return c >= own.first && c < own.last ? c - own.first : -1;
        };
        const auto term = [&](int q) {
            const int row = (channels_last ? q : pixel.place[q]) - row_part.first;
            return pixel.most[q] * to_acc(x[row * o.cols + (channels_last ? pixel.place[q] : q)]);
        };
        const Part seen{channels_last ? pixels.first : 0, channels_last ? pixels.last : HW};
        if (p.ws && warp < o.term_parts)
            sum_by_key(seen.first + warp * kWarp, seen.last, o.term_parts * kWarp, terms + warp * count, key, term);
        const auto sum_of_terms = [&](int c) {
            float sum = 0;
            for (int part = 0; part < o.term_parts; ++part) sum += terms[part * count + c - own.first];
            return sum;
        };
        const auto sums = [&](auto if_given) {
            constexpr bool given = decltype(if_given)::value;
            with_word<T>(o.cols, [&](auto word) {
                constexpr int W = decltype(word)::size;
                if constexpr (channels_last) {
                    reduce_columns<float, W>(
                        o.cols, o.groups,
                        [&](float (&a)[W], int group, int col) {
#pragma unroll 4
                            for (int row = group; row < rows; row += o.groups) {
                                const float mean = pixel.mean[row_part.first + row];
                                float v[W], d[W] = {};
                                load<W>(x + row * o.cols + col, v);
                                if constexpr (!given) {
                                    const float gate = pixel.gate[row_part.first + row];
                                    load<W>(dy + row * o.cols + col, d);
#pragma unroll
                                    for (int j = 0; j < W; ++j) d[j] *= gate;
                                }
#pragma unroll
                                for (int j = 0; j < W; ++j) a[j] += v[j] * (d[j] + mean);
                            }
                        },
                        [&](int i, const auto& a) { store_numbers(scratch + i, a); },
                        [&](int i) { return scratch[i]; });
                } else {
                    constexpr int V = kNarrower<T, W>;
                    reduce_rows<float, V>(
                        o, rows,
                        [&](float (&a)[kBatch], auto start, int, int first, int last, int step) {
#pragma unroll 1
                            for (int col = first; col < last; col += step) {
                                [[maybe_unused]] float gate[V];
                                float mean[V];
                                if constexpr (!given) load_numbers(pixel.gate + col, gate);
                                load_numbers(pixel.mean + col, mean);
#pragma unroll
                                for (int i = 0; i < kBatch; ++i) {
                                    float v[V], d[V] = {};
                                    load<V>(x + start(i) + col, v);
                                    if constexpr (!given) {
                                        load<V>(dy + start(i) + col, d);
#pragma unroll
                                        for (int j = 0; j < V; ++j) d[j] *= gate[j];
                                    }
#pragma unroll
                                    for (int j = 0; j < V; ++j) a[i] += v[j] * (d[j] + mean[j]);
                                }
                            }
                        },
                        [&](int i, float a) { row_parts[i] = a; });
                }
            });
        };
        if (p.given) sums(std::true_type{});
        else sums(std::false_type{});
        __syncthreads();
        if (channels_last) {
            for (int c = int(threadIdx.x); c < C; c += kOnChipThreads) scratch[c] += sum_of_terms(c);
            blocks.sync();
            for (int c = column_part.first + int(threadIdx.x); c < column_part.last; c += kOnChipThreads)
                finish_channel(c, join_blocks<float>(blocks, [&](int from) { return *blocks.of(from, scratch + c); }));
        } else {
            for (int row = int(threadIdx.x); row < rows; row += kOnChipThreads) {
                const int c = row_part.first + row;
                finish_channel(c,
                               join_slices<float>(o, rows, row, [&](int i) { return row_parts[i]; }) + sum_of_terms(c));
            }
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

    // dx: a thread keeps what belongs to its columns while it goes down the rows. What the maxima get is written over
    // it.
    T* dx = static_cast<T*>(p.dx) + start;
    const auto gradient = [&](float d, float gate, float mean, float column_gate, float column_mean, float of_row,
                              float of_column) {
        return channels_last ? (d * gate + mean + of_row) * column_gate + column_mean + of_column
                             : (d * column_gate + column_mean + of_column) * gate + mean + of_row;
    };
    const auto elements_of_dx = [&](auto if_dy) {
        constexpr bool with_dy = decltype(if_dy)::value;
        with_word<T>(o.cols, [&](auto word) {
            constexpr int W = decltype(word)::size;
            const int words = o.cols / W;
            for (int i = int(threadIdx.x); i < o.groups * words; i += kOnChipThreads) {
                const int col = i % words * W;
                float column_gate[W], column_mean[W];
                load_numbers(of_columns.gate + col, column_gate);
                load_numbers(of_columns.mean + col, column_mean);
#pragma unroll 4
                for (int row = i / words; row < rows; row += o.groups) {
                    const float gate = of_rows.gate[row_part.first + row], mean = of_rows.mean[row_part.first + row];
                    float v[W] = {};
                    if constexpr (with_dy) load<W>(dy + row * o.cols + col, v);
#pragma unroll
                    for (int j = 0; j < W; ++j)
                        v[j] = channels_last ? (v[j] * gate + mean) * column_gate[j] + column_mean[j]
                                             : (v[j] * column_gate[j] + column_mean[j]) * gate + mean;
                    store<W>(dx + row * o.cols + col, v);
                }
            }
        });
    };
    if (p.dy) elements_of_dx(std::true_type{});
    else elements_of_dx(std::false_type{});
    __syncthreads();
    const auto fix = [&](int row, int col) {
        const int at = row_part.first + row;
        const float d = p.dy ? to_acc(dy[row * o.cols + col]) : 0;
        const float of_row = of_rows.place[at] == col ? of_rows.most[at] : 0;
        const float of_column = of_columns.place[col] == at ? of_columns.most[col] : 0;
        dx[row * o.cols + col] = from_acc<T>(gradient(d, of_rows.gate[at], of_rows.mean[at], of_columns.gate[col],
                                                      of_columns.mean[col], of_row, of_column));
    };
    // One that is the maximum of its row and of its column is the column's.
    for (int row = int(threadIdx.x); row < rows; row += kOnChipThreads) {
        const int col = of_rows.place[row_part.first + row];
        if (of_columns.place[col] != row_part.first + row) fix(row, col);
    }
    for (int col = int(threadIdx.x); col < o.cols; col += kOnChipThreads) {
        const int row = of_columns.place[col] - row_part.first;
        if (row >= 0 && row < rows) fix(row, col);
    }
}

// Block b of the grid is one of those of image b / cluster.
template <class T, bool channels_last, bool clustered> __global__ void __launch_bounds__(kOnChipThreads, 2)
    cbam_bwd_on_chip_kernel(const Problem p, const OnChip o) {
    if constexpr (!clustered || kClusters)
        backward_image<T, channels_last>(p, o, Blocks<clustered>{}, int64_t(blockIdx.x) / o.cluster);
}

}  // namespace cbam::cuda
