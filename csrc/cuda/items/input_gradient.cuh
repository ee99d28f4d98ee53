// dx = (dy s + dmean_c + [c = argmax_c] dmax_c) g + dmean_hw + [p = argmax_hw] dmax_hw for pixel p and channel c.
//
// All elements are written without the brackets, then those at an argmax again: at most HW + C of an image. So nothing
// is compared per element and nothing is added atomically.
#pragma once

#include <type_traits>

#include "tile.cuh"

namespace cbam::cuda {

// Values of the pixels or the channels: a factor ``gate`` (null: 1), a term ``mean`` for all elements (null: 0), and,
// in mean[max + i], a term for the element at argmax[i] (max is 0: none).
template <class F> struct Sides {
    const F *gate, *mean;
    int max;
    const int32_t* argmax;
};

// In shared memory: gate and mean of a run of rows and of a part's columns; the term at the argmax and the argmax, of
// the rows, then of the columns.
template <class F, int V> struct GradientSides {
    F* base;
    int rows, columns;

    CBAM_ANYWHERE static constexpr int numbers(int columns) { return WordNumbers<F, V>::bytes(columns) / sizeof(F); }
    CBAM_ANYWHERE static size_t bytes(const Tiling& t) {
        const int rows = staged_rows(t), columns = t.lanes * V;
        return (2 * rows + 2 * numbers(columns)) * sizeof(F) + (rows + columns) * (sizeof(F) + sizeof(int));
    }
    __device__ GradientSides(unsigned char* shared, const Tiling& t)
        : base(reinterpret_cast<F*>(shared)), rows(staged_rows(t)), columns(t.lanes * V) {}
    __device__ __forceinline__ F* row_gate() const { return base; }
    __device__ __forceinline__ F* row_mean() const { return base + rows; }
    __device__ __forceinline__ WordNumbers<F, V> column_gate() const { return {base + 2 * rows, columns}; }
    __device__ __forceinline__ WordNumbers<F, V> column_mean() const {
        return {base + 2 * rows + numbers(columns), columns};
    }
    __device__ __forceinline__ F& max(int i) const { return base[2 * rows + 2 * numbers(columns) + i]; }
    // The argmax; -1 for none.
    __device__ __forceinline__ int& argmax(int i) const {
        return reinterpret_cast<int*>(base + 3 * rows + 2 * numbers(columns) + columns)[i];
    }
    __device__ __forceinline__ void put(int i, const Sides<F>& sides, int of_side, F& gate, F& mean) const {
        gate = sides.gate ? sides.gate[of_side] : F(1);
        mean = sides.mean ? sides.mean[of_side] : F(0);
        max(i) = sides.max ? sides.mean[sides.max + of_side] : F(0);
        argmax(i) = sides.max ? sides.argmax[of_side] : -1;
    }
    // Calls f(row, column) for this thread's argmax in rows [run, last) of the part. An element that is the argmax of
    // its row and of its column is visited for the column.
    template <class Function>
    __device__ __forceinline__ void each_maximum(const Tile& tile, int run, int last, Function f) const {
#pragma unroll 1
        for (int row = run + int(threadIdx.x); row < last; row += kThreads) {
            const int col = argmax(row - run);
            if (col >= tile.col && col < tile.col_end && argmax(rows + col - tile.col) != row) f(row, col);
        }
#pragma unroll 1
        for (int col = tile.col + int(threadIdx.x); col < tile.col_end; col += kThreads) {
            const int row = argmax(rows + col - tile.col);
            if (row >= run && row < last) f(row, col);
        }
    }
};

// For a part of at most lanes V columns. dy (null: zeros) and dx begin at the image.
template <class T, int V, bool channels_last>
__device__ __forceinline__ void input_gradient(const T* dy, T* dx, const Tiling& t, const Tile& tile,
                                               const Sides<Acc<T>>& pixels, const Sides<Acc<T>>& channels,
                                               unsigned char* shared) {
    using F = Acc<T>;
    const GradientSides<F, V> sides(shared, t);
    const Sides<F>&of_rows = channels_last ? pixels : channels, &of_columns = channels_last ? channels : pixels;
    const int col = tile.col + tile.lane * V, step = tile.groups * kBatch;
    const auto rows = [&](int run, int last, auto with_dy) {
        const auto gates = sides.column_gate(), means = sides.column_mean();
        // Replaces words of dy by words of dx, for some rows. A step has the columns of one plane of gates.
        const auto finish = [&](auto& words, const auto& row_gate, const auto& row_mean) {
            constexpr int kColumns = WordNumbers<F, V>::kOfAccess, kRows = sizeof(words) / sizeof(words[0]);
#pragma unroll
            for (int k = 0; k < V; k += kColumns) {
                F gate[kColumns], mean[kColumns];
                gates.load_plane(k / kColumns, tile.lane, gate);
                means.load_plane(k / kColumns, tile.lane, mean);
#pragma unroll
                for (int i = 0; i < kRows; ++i)
#pragma unroll
                    for (int j = 0; j < kColumns; ++j) {
                        const F v = to_acc(words[i].v[k + j]);
                        words[i].v[k + j] =
                            from_acc<T>(channels_last ? (v * row_gate[i] + row_mean[i]) * gate[j] + mean[j]
                                                      : (v * gate[j] + mean[j]) * row_gate[i] + row_mean[i]);
                    }
            }
        };
        int row = col < tile.col_end ? run + tile.group * kBatch : last;
        int64_t at = offset(t, row, col);
#pragma unroll 1
        for (; row + kBatch <= last; row += step, at += int64_t(step) * t.cols) {
            Packed<T, V> words[kBatch] = {};
            F row_gate[kBatch], row_mean[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (decltype(with_dy)::value) words[i].load(dy + at + i * int64_t(t.cols));
            load_numbers(sides.row_gate() + row - run, row_gate);
            load_numbers(sides.row_mean() + row - run, row_mean);
            finish(words, row_gate, row_mean);
#pragma unroll
            for (int i = 0; i < kBatch; ++i) words[i].store(dx + at + i * int64_t(t.cols));
        }
#pragma unroll 1
        for (; row < last; ++row, at += t.cols) {  // one group has fewer than kBatch rows left
            Packed<T, V> word[1] = {};
            if (decltype(with_dy)::value) word[0].load(dy + at);
            finish(word, sides.row_gate() + row - run, sides.row_mean() + row - run);
            word[0].store(dx + at);
        }
    };
    const auto visit = [&](int run, int last) {
        if (dy) rows(run, last, std::true_type());
        else rows(run, last, std::false_type());
        __syncthreads();
        sides.each_maximum(tile, run, last, [&](int row, int col) {
            const int r = row - run, c = col - tile.col;
            const F d = dy ? to_acc(dy[offset(t, row, col)]) : F(0);
            const F of_row = sides.argmax(r) == col ? sides.max(r) : F(0);
            const F of_column = sides.argmax(sides.rows + c) == row ? sides.max(sides.rows + c) : F(0);
            const F gate = sides.column_gate().at(c), mean = sides.column_mean().at(c);
            dx[offset(t, row, col)] = from_acc<T>(
                channels_last ? (d * sides.row_gate()[r] + sides.row_mean()[r] + of_row) * gate + mean + of_column
                              : (d * gate + mean + of_column) * sides.row_gate()[r] + sides.row_mean()[r] + of_row);
        });
    };
    each_run(
        tile, [&](int row, int i) { sides.put(i, of_rows, row, sides.row_gate()[i], sides.row_mean()[i]); },
        [&](int col, int i) {
            sides.put(sides.rows + i, of_columns, col, sides.column_gate().at(i), sides.column_mean().at(i));
        },
        visit);
}

}  // namespace cbam::cuda
