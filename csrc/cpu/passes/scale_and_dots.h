// The passes over an image as a row-major matrix: in NCHW rows are channels and columns are pixels, in NHWC the
// reverse. CBAM's channel side and spatial side are then the same few operations, once along rows and once along
// columns, and one source serves both layouts. Each function reads or writes every element of its large arguments once.
// T is the element type of the image, F that of sums and vectors. A range of columns is also a matrix, with a row
// stride of pitch.
//
// Accuracy: a lane adds at most kBlock rows, or kChunk / lanes columns, in F; these partial sums are added in double.
#pragma once

#include "../simd.h"

namespace {

// A pass is not inlined: it runs for a whole image or a part of it.
#define CBAM_PASS __attribute__((noinline))

constexpr int64_t kBlock = 64;    // rows between two additions to the double totals
constexpr int64_t kChunk = 4096;  // columns processed at a time, so that the column vectors stay in L1
constexpr int kGroup = 4;         // rows processed together, which share the reads of the column vectors
constexpr int64_t kAhead = 2048;  // bytes; see ahead()
constexpr int kTile = 4;          // vectors of columns held in registers down the rows

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// body(first, last) for [0, n) in parts of at most size.
template <class Body> inline void each_part(int64_t n, int64_t size, Body body) {
    for (int64_t first = 0; first < n; first += size) body(first, least(n, first + size));
}

template <class V> CBAM_PASS void fill(V* v, int64_t n, V value) {
    for (int64_t i = 0; i < n; ++i) v[i] = value;
}

template <int n> struct Count {};

// Rows processed together are separate streams, too short for the hardware prefetcher. The offset from column c of [0,
// width) of such a row to the element needed kAhead bytes later: in the same row, or, at its end, in the row kGroup
// rows below.
template <class T> inline int64_t ahead(int64_t c, int64_t width, int64_t cols) {
    constexpr int64_t n = kAhead / sizeof(T);
    return c + n < width ? n : n + kGroup * cols - width;
}

// body(row, Count<n>) for n = kGroup rows at a time, then one by one.
template <class Body> inline void each_group(int64_t first, int64_t last, Body body) {
    int64_t r = first;
    for (; r + kGroup <= last; r += kGroup) body(r, Count<kGroup>{});
    for (; r < last; ++r) body(r, Count<1>{});
}

// body(column, Count<vectors>, lanes of the last vector) for column tiles that cover [0, cols). The last tile of whole
// vectors may overlap the previous one and write the same values again.
template <class F, class Body> inline void each_tile(int64_t cols, Body body) {
    constexpr int lanes = kLanes<F>, width = kTile * lanes;
    const int n = int(least(cols, width));
    if (n == width)
        each_part(cols, width, [&](int64_t c, int64_t) { body(least(c, cols - n), Count<kTile>{}, Whole{}); });
    else if (n > 3 * lanes) body(0, Count<kTile>{}, First{n - 3 * lanes});
    else if (n > lanes)
        each_part(n, 2 * lanes, [&](int64_t c, int64_t) {
            body(c ? n - 2 * lanes : 0, Count<2>{}, First{n > 2 * lanes ? lanes : n - lanes});
        });
    else body(0, Count<1>{}, First{n});
}

// body(j, lanes) for the vectors of one tile.
template <int n, class Last, class Body> inline void each_in_tile(Last last, Body body) {
#pragma GCC unroll 4
    for (int j = 0; j + 1 < n; ++j) body(j, Whole{});
    body(n - 1, last);
}

// Column sums of a tile, in double.
template <class F, int n> struct Totals {
    double lanes[n * kLanes<F>] = {};

    void add(const Vec<F> (&part)[n]) {
        F values[n * kLanes<F>];
        __builtin_memcpy(values, part, sizeof values);
        for (int i = 0; i < n * kLanes<F>; ++i) lanes[i] += values[i];
    }
    Vec<F> times(int j, double factor) const {
        F values[kLanes<F>];
        for (int i = 0; i < kLanes<F>; ++i) values[i] = F(lanes[j * kLanes<F> + i] * factor);
        return load(values, Whole{});
    }
};

// y = x u v (+ residual) (then ReLU), with a factor u per row and v per column. The options are template arguments, so
// a product and a sum are contracted, with one rounding, in all vectors of a row or in none.
template <bool residual, bool relu, class T, class F = Acc<T>>
CBAM_PASS void scale(const T* x, int64_t rows, int64_t cols, int64_t pitch, const F* u, const F* v, const T* add,
                     T* y) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * pitch;
        each_vector<F>(cols, [&](int64_t c, auto lanes) {
            Vec<F> result = load(x + row + c, lanes) * u[r] * load(v + c, lanes);
            if constexpr (residual) result += load(add + row + c, lanes);
            if constexpr (relu) result = result < 0 ? Vec<F>{} : result;
            store(y + row + c, result, lanes);
        });
    }
}

// out[k][r] = sum over columns of x v[k], for every given vector: one for an image, any number for weights, which are
// of type F. Two vectors share a read of x, and as many sums as lanes are reduced across lanes together.
template <class T, class F = Acc<T>>
CBAM_PASS void row_dots(const T* x, int64_t rows, int64_t cols, int count, const F* const* v, F* const* out) {
    using V = Vec<F>;
    auto dots = [&]<int n>(int k, Count<n>) {
        constexpr int height = kLanes<F> / n;
        each_part(rows, height, [&](int64_t r, int64_t) {
            r = least(r, rows < height ? 0 : rows - height);  // repeat some rows rather than process fewer
            const T* row[height] = {x + r * cols};
            for (int j = 1; j < height; ++j) row[j] = row[j - 1] + (j < rows ? cols : 0);
            auto part = [&](int64_t c, int64_t end) {
                V sum[kLanes<F>] = {};  // vector l and row j at l * height + j
                each_vector<F>(end - c, [&](int64_t i, auto lanes) {
                    V factor[n];
#pragma GCC unroll 2
                    for (int l = 0; l < n; ++l) factor[l] = load(v[k + l] + c + i, lanes);
#pragma GCC unroll 16
                    for (int j = 0; j < height; ++j) {
                        const V element = load(row[j] + c + i, lanes);
#pragma GCC unroll 2
                        for (int l = 0; l < n; ++l) sum[l * height + j] += element * factor[l];
                    }
                });
                return sum_each(sum);
            };
            V sums;
            if (cols <= kChunk) {
                sums = part(0, cols);
            } else {
                Totals<F, 1> total;
                each_part(cols, kChunk, [&](int64_t c, int64_t end) { total.add({part(c, end)}); });
                sums = total.times(0, 1);
            }
            F values[kLanes<F>];
            store(values, sums, Whole{});
            for (int l = 0; l < n; ++l)
                if (rows >= height) __builtin_memcpy(out[k + l] + r, values + l * height, height * sizeof(F));
                else __builtin_memcpy(out[k + l], values + l * height, rows * sizeof(F));
        });
    };
    int k = 0;
    if constexpr (sizeof(T) == sizeof(F))
        for (; k + 2 <= count; k += 2) dots(k, Count<2>{});
    if (k < count) dots(k, Count<1>{});
}

// out[k][c] = sum over rows of x u[k], for every given vector, as in row_dots. Two vectors share a read of x.
template <class T, class F = Acc<T>> CBAM_PASS void col_dots(const T* x, int64_t rows, int64_t cols, int64_t pitch,
                                                             int count, const F* const* u, F* const* out) {
    using V = Vec<F>;
    each_tile<F>(cols, [&]<int width>(int64_t c, Count<width>, auto last) {
        auto dots = [&]<int n>(int k, Count<n>) {
            Totals<F, n * width> total;
            each_part(rows, kBlock, [&](int64_t r, int64_t end) {
                V sum[n * width] = {};
                for (; r < end; ++r) {
                    const T* row = x + r * pitch + c;
                    each_in_tile<width>(last, [&](int j, auto lanes) {
                        const V element = load(row + j * kLanes<F>, lanes);
                        for (int l = 0; l < n; ++l) sum[l * width + j] += element * u[k + l][r];
                    });
                }
                total.add(sum);
            });
            for (int l = 0; l < n; ++l)
                each_in_tile<width>(last, [&](int j, auto lanes) {
                    store(out[k + l] + c + j * kLanes<F>, total.times(l * width + j, 1), lanes);
                });
        };
        int k = 0;
        if constexpr (sizeof(T) == sizeof(F))
            for (; k + 2 <= count; k += 2) dots(k, Count<2>{});
        if (k < count) dots(k, Count<1>{});
    });
}

}  // namespace
