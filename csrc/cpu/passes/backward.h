// The two passes of the backward that read dy, in the terms of scale_and_dots.h.
#pragma once

#include "tile_sums.h"

namespace {

// With z = dy, or with relu dy where y > 0, reads x and dy once and computes a tile's
//   along[r] = sum over columns of x z v,  down[c] = sum over rows of x z u,
// with a factor u per row and v per column; either sum is optional. With relu, z is written to masked.
template <bool relu, bool to_rows, bool to_cols, class T, class F = Acc<T>>
CBAM_PASS void products(const T* x, const T* dy, const T* y, T* masked, const F* u, const F* v, const Tile<F>& tile) {
    using V = Vec<F>;
    const int64_t width = tile.c1 - tile.c0, cols = tile.cols;
    F sum[kTileCols];
    for (int64_t c = 0; to_cols && c < width; ++c) sum[c] = 0;
    each_group(tile.r0, tile.r1, [&]<int n>(int64_t r, Count<n>) {
        V along[n] = {};
        each_vector<F>(width, [&](int64_t c, auto lanes) {
            V factor = {}, down = {};
            if constexpr (to_rows) factor = load(v + tile.c0 + c, lanes);
            if constexpr (to_cols) down = load(sum + c, lanes);
            const int64_t later = ahead<T>(c, width, cols);
#pragma GCC unroll 4
            for (int j = 0; j < n; ++j) {
                const int64_t at = (r + j) * cols + tile.c0 + c;
                __builtin_prefetch(x + at + later);
                __builtin_prefetch(dy + at + later);
                V z = load(dy + at, lanes);
                if constexpr (relu) {
                    z = load(y + at, lanes) <= 0 ? V{} : z;
                    store(masked + at, z, lanes);
                }
                const V xz = load(x + at, lanes) * z;
                if constexpr (to_cols) down += xz * u[r + j];
                if constexpr (to_rows) along[j] += xz * factor;
            }
            if constexpr (to_cols) store(sum + c, down, lanes);
        });
        for (int j = 0; to_rows && j < n; ++j) tile.along[r + j] = sum_lanes<F>(along[j]);
    });
    for (int64_t c = 0; to_cols && c < width; ++c) tile.down[tile.c0 + c] = sum[c];
}

// For some rows, dx = (z s + t) g + b, plus col_add[c] at row col_index[c] of each column and row_add[r] at column
// row_index[r] of each row: the gradients of the maxima at their argmax. with_z: z is given, else zeros; it may be dx.
// by_column: the columns have maxima; row_index is null if the rows have none. s and t are per pixel, g and b per
// channel; channels are the columns if channels_last, else the rows.
template <class T, bool channels_last, bool with_z, bool by_column, class F = Acc<T>>
CBAM_PASS void input_gradient(const T* z, Range rows, int64_t cols, const F* s, const F* t, const F* g, const F* b,
                              const int32_t* col_index, const F* col_add, const int32_t* row_index, const F* row_add,
                              T* dx) {
    using V = Vec<F>;
    // give(j, gradient) for n rows from the first, at column c.
    auto gradients = [&]<int n>(int64_t first, Count<n>, int64_t c, auto lanes, auto give) {
        IndexVec<F> index = {};
        V add = {};
        if constexpr (by_column) index = load_index(col_index + c, lanes, F{}), add = load(col_add + c, lanes);
        const V scale = load((channels_last ? g : s) + c, lanes), offset = load((channels_last ? b : t) + c, lanes);
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) {
            const int64_t r = first + j;
            V added = {};
            if constexpr (by_column) added = index == int32_t(r) ? add : V{};
            V zs = {};
            if constexpr (with_z) {
                const V element = load(z + r * cols + c, lanes);
                if constexpr (channels_last) zs = element * s[r];
                else zs = element * scale;
            }
            if constexpr (channels_last) give(j, (zs + t[r]) * scale + offset + added);
            else give(j, (zs + offset) * g[r] + b[r] + added);
        }
    };
    auto group = [&]<int n>(int64_t first, Count<n> count) {
        V special[n];  // for half types the elements at row_index, computed separately, so that they are rounded once
        for (int j = 0; sizeof(T) == 2 && row_index && j < n; ++j)
            gradients(first + j, Count<1>{}, row_index[first + j], First{1},
                      [&](int, V v) { special[j] = v + row_add[first + j]; });
        each_vector<F>(cols, [&](int64_t c, auto lanes) {
            const int64_t later = ahead<T>(c, cols, cols);
            gradients(first, count, c, lanes, [&](int j, V v) {
                const int64_t at = (first + j) * cols + c;
                if constexpr (with_z) __builtin_prefetch(z + at + later);
                store(dx + at, v, lanes);
            });
        });
        for (int j = 0; row_index && j < n; ++j) {
            T* p = dx + (first + j) * cols + row_index[first + j];
            if constexpr (sizeof(T) == 2) store(p, special[j], First{1});
            else *p += row_add[first + j];
        }
    };
    if constexpr (with_z) each_group(rows.first, rows.last, group);
    else  // only dx is moved
        for (int64_t r = rows.first; r < rows.last; ++r) group(r, Count<1>{});
}

// out[i][j] = sum over images n and terms t of u[n][t][i] v[n][t][j], for rows i in [first, last). u and v have the
// strides u_stride and v_stride between images, and u_term and v_term between terms.
template <int terms, class F> void outer_sums(int64_t first, int64_t last, int64_t cols, int64_t images, const F* u,
                                              int64_t u_stride, int64_t u_term, const F* v, int64_t v_stride,
                                              int64_t v_term, F* out) {
    auto block = [&]<int n>(int64_t i, Count<n>) {  // n rows share a read of v
        each_vector<F>(cols, [&](int64_t j, auto lanes) {
            Vec<F> sum[n] = {};
            for (int64_t image = 0; image < images; ++image)
                for (int t = 0; t < terms; ++t) {
                    const Vec<F> element = load(v + image * v_stride + t * v_term + j, lanes);
                    const F* factor = u + image * u_stride + t * u_term + i;
                    for (int l = 0; l < n; ++l) sum[l] += element * factor[l];
                }
            for (int l = 0; l < n; ++l) store(out + (i + l) * cols + j, sum[l], lanes);
        });
    };
    int64_t i = first;
    for (; i + 8 <= last; i += 8) block(i, Count<8>{});
    for (; i < last; ++i) block(i, Count<1>{});
}

}  // namespace
