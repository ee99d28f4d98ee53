// Mean, maximum and argmax of every row and of every column of a matrix: the two pools of each gate. The maximum is
// optional. Long rows are read as vectors and reduced across lanes at their end. Short rows, where this reduction would
// dominate, are transposed in blocks, so that each row is a lane. Columns are lanes already.
#pragma once

#include "scale_and_dots.h"

namespace {

// Maxima follow PyTorch: NaN is the maximum; otherwise the first index wins. The vector loops below ignore NaN; if the
// sum of the same values is NaN, this searches for it.
template <class F, class Value> void prefer_nan(int64_t n, Value value, F* max, int32_t* arg) {
    for (int64_t i = 0; i < n; ++i) {
        const F v = value(i);
        if (v != v) {
            *max = v;
            *arg = int32_t(i);
            return;
        }
    }
}

// Mean, maximum and argmax of each row of w x, with a weight w per column.
template <class T, bool weighted, bool with_max, class F = Acc<T>>
CBAM_PASS void long_row_stats(const T* x, int64_t rows, int64_t cols, const Acc<T>* w, F* mean, F* max, int32_t* arg) {
    using V = Vec<F>;
    using I = IndexVec<F>;
    constexpr int64_t step = kTile * kLanes<F>;
    const V lowest = broadcast<V>(-F(__builtin_inf()));
    const double share = 1.0 / double(cols);
    for (int64_t r = 0; r < rows; ++r, x += cols) {
        auto value = [&](int64_t c, auto lanes) {
            if constexpr (weighted) return load(x + c, lanes) * load(w + c, lanes);
            else return load(x + c, lanes);
        };
        V best = lowest;  // per lane: the largest value so far, and its step
        I where = {};
        auto compare = [&](V top, int64_t c) {
            if constexpr (!with_max) return;
            const I better = top > best;
            best = better ? top : best;
            where = better ? broadcast<I>(int32_t(c / step)) : where;
        };
        double total = 0;
        each_part(cols, kChunk, [&](int64_t c, int64_t end) {
            V sum[kTile] = {};
            for (; c + step <= end; c += step) {
                V v[kTile];
#pragma GCC unroll 4
                for (int j = 0; j < kTile; ++j) sum[j] += v[j] = value(c + j * kLanes<F>, Whole{});
                compare(vmax(vmax(v[0], v[1]), vmax(v[2], v[3])), c);
            }
            V top = lowest;
            each_vector<F>(end - c, [&](int64_t i, auto lanes) {
                const V v = value(c + i, lanes);
                sum[0] += v;
                top = vmax(or_else<F>(v, lanes, lowest), top);
            });
            compare(top, c);
            total += sum_lanes<F>((sum[0] + sum[1]) + (sum[2] + sum[3]));
        });
        mean[r] = F(total * share);
        if constexpr (!with_max) continue;
        max[r] = max_lanes<F>(best);
        const V top = broadcast<V>(max[r]);
        int64_t c = 0;
        if (cols > step) c = min_lanes<F>(best == top ? where : broadcast<I>(0x7fffffff)) * step;
        uint64_t hits = 0;  // a bit for every column of that step equal to the maximum
        auto look = [&](int64_t i, auto lanes) { hits |= uint64_t(equal_bits<F>(value(c + i, lanes), top)) << i; };
        if (c + step <= cols)
            for (int j = 0; j < kTile; ++j) look(j * kLanes<F>, Whole{});
        else each_vector<F>(cols - c, look);
        arg[r] = int32_t(c + __builtin_ctzll(hits | 1ull << 63));
        if (mean[r] != mean[r]) prefer_nan(cols, [&](int64_t i) { return value(i, First{1})[0]; }, max + r, arg + r);
    }
}

// Updates sum, maximum and argmax of a vector of columns with v of this row.
template <bool with_max, class V, class I> inline void add_row(V v, int64_t row, V& sum, V& max, I& where) {
    sum += v;
    if constexpr (!with_max) return;
    const I better = v > max;
    max = better ? v : max;
    where = better ? broadcast<I>(int32_t(row)) : where;
}

// Writes the results for a vector of columns; value(row, i) returns an element of the i-th column, to search for NaN.
template <bool with_max, class F, class Lanes, class Value> void write_stats(Vec<F> m, Vec<F> top, IndexVec<F> where,
                                                                             Lanes lanes, int64_t rows, Value value,
                                                                             F* mean, F* max, int32_t* arg) {
    store(mean, m, lanes);
    if constexpr (!with_max) return;
    store(max, top, lanes);
    store_index(arg, where, lanes, F{});
    if (equal_bits<F>(m, m) == (1u << kLanes<F>)-1) return;
    for (int i = 0; i < lane_count<F>(lanes); ++i)
        if (mean[i] != mean[i]) prefer_nan(rows, [&](int64_t r) { return value(r, i); }, max + i, arg + i);
}

// The same for each column of w x, with a weight w per row.
template <class T, bool weighted, bool with_max, class F = Acc<T>>
CBAM_PASS void col_stats(const T* x, int64_t rows, int64_t cols, int64_t pitch, const Acc<T>* w, F* mean, F* max,
                         int32_t* arg) {
    each_tile<F>(cols, [&]<int n>(int64_t c, Count<n>, auto last) {
        auto value = [&](const T* row, int64_t r, int64_t i, auto lanes) {
            Vec<F> v = load(row + i, lanes);
            if constexpr (weighted) v *= w[r];
            return v;
        };
        Totals<F, n> total;
        Vec<F> top[n];
        IndexVec<F> where[n] = {};
        for (int j = 0; j < n; ++j) top[j] = broadcast<Vec<F>>(-F(__builtin_inf()));
        each_part(rows, kBlock, [&](int64_t r, int64_t end) {
            Vec<F> sum[n] = {};
            for (const T* row = x + r * pitch + c; r < end; ++r, row += pitch)
                each_in_tile<n>(last, [&](int j, auto lanes) {
                    add_row<with_max>(value(row, r, j * kLanes<F>, lanes), r, sum[j], top[j], where[j]);
                });
            total.add(sum);
        });
        each_in_tile<n>(last, [&](int j, auto lanes) {
            const int64_t at = c + j * kLanes<F>;
            auto one = [&](int64_t r, int i) { return value(x + r * pitch, r, at + i, First{1})[0]; };
            write_stats<with_max, F>(total.times(j, 1.0 / double(rows)), top[j], where[j], lanes, rows, one, mean + at,
                                     max + at, arg + at);
        });
    });
}

// Like long_row_stats, with blocks of rows transposed so that each row is a lane and no sum crosses lanes.
template <class T, bool weighted, class F = Acc<T>>
CBAM_PASS void short_row_stats(const T* x, int64_t rows, int64_t cols, const Acc<T>* w, F* mean, F* max, int32_t* arg) {
    constexpr int n = kLanes<F>;
    auto value = [&](int64_t r, int64_t c, auto lanes) {
        const Vec<F> v = load(x + r * cols + c, lanes);
        if constexpr (weighted) return v * load(w + c, lanes);
        else return v;
    };
    each_part(rows, n, [&](int64_t first, int64_t last) {
        Totals<F, 1> total;
        Vec<F> top = broadcast<Vec<F>>(-F(__builtin_inf()));
        IndexVec<F> where = {};
        each_part(cols, kBlock, [&](int64_t block, int64_t end) {
            Vec<F> sum[1] = {};
            each_vector<F>(end - block, [&](int64_t i, auto lanes) {
                const int64_t c = block + i;
                Vec<F> v[n];
#pragma GCC unroll 16
                for (int j = 0; j < n; ++j) v[j] = value(least(first + j, last - 1), c, lanes);
                transpose(v);
                const int count = lane_count<F>(lanes);
#pragma GCC unroll 16
                for (int j = 0; j < n; ++j)
                    if (j < count) add_row<true>(v[j], c + j, sum[0], top, where);
            });
            total.add(sum);
        });
        auto write = [&](auto lanes) {
            auto one = [&](int64_t c, int r) { return value(first + r, c, First{1})[0]; };
            write_stats<true, F>(total.times(0, 1.0 / double(cols)), top, where, lanes, cols, one, mean + first,
                                 max + first, arg + first);
        };
        if (last - first == n) write(Whole{});
        else write(First{int(last - first)});
    });
}

// Only the mean of each row: the sums of as many short rows as lanes are reduced across lanes together.
template <class T, class F = Acc<T>> CBAM_PASS void short_row_means(const T* x, int64_t rows, int64_t cols, F* mean) {
    constexpr int n = kLanes<F>;
    each_part(rows, n, [&](int64_t first, int64_t last) {
        Vec<F> sum[n] = {};
        each_vector<F>(cols, [&](int64_t c, auto lanes) {
#pragma GCC unroll 16
            for (int j = 0; j < n; ++j) sum[j] += load(x + least(first + j, last - 1) * cols + c, lanes);
        });
        const Vec<F> result = sum_each(sum) / F(cols);
        if (last - first == n) store(mean + first, result, Whole{});
        else store(mean + first, result, First{int(last - first)});
    });
}

template <class T, bool weighted, bool with_max, class F = Acc<T>>
void row_stats(const T* x, int64_t rows, int64_t cols, const Acc<T>* w, F* mean, F* max, int32_t* arg) {
    const bool is_short = cols <= 8 * kLanes<F>;
    if (!is_short) long_row_stats<T, weighted, with_max>(x, rows, cols, w, mean, max, arg);
    else if constexpr (weighted || with_max) short_row_stats<T, weighted>(x, rows, cols, w, mean, max, arg);
    else short_row_means(x, rows, cols, mean);
}

}  // namespace
