// How the threads of a block split a tile of an image. An image is a matrix in memory order: C rows of HW columns or,
// channels_last, HW rows of C columns. A group of ``lanes`` threads goes along the rows, V columns per lane, and takes
// kBatch rows at a time, so that each thread has kBatch loads in flight.
#pragma once

#include "../../problem.h"
#include "../common/launcher.h"
#include "../common/words.cuh"

namespace cbam::cuda {

struct Tiling {
    int rows, cols;            // of an image
    int lanes;                 // a power of two from kBatch to kWarp
    int tile_rows, tile_cols;  // of a tile
    int row_tiles, col_tiles;  // of an image

    CBAM_ANYWHERE int tiles() const { return row_tiles * col_tiles; }
};

struct Tile {
    int row_tile, col_tile;
    int row, row_end, col, col_end;  // the tile
    int lane, group, groups;         // this thread

    __device__ Tile(const Tiling& t, int index) {
        row_tile = index / t.col_tiles;
        col_tile = index % t.col_tiles;
        row = row_tile * t.tile_rows;
        row_end = min(row + t.tile_rows, t.rows);
        col = col_tile * t.tile_cols;
        col_end = min(col + t.tile_cols, t.cols);
        lane = threadIdx.x % t.lanes;
        group = threadIdx.x / t.lanes;
        groups = kThreads / t.lanes;
    }
    // Calls f for each part of the tile: the columns that the lanes take at once, V per lane.
    template <int V, class Function> __device__ __forceinline__ void each_part(Function f) const {
        const int width = kThreads / groups * V;
        Tile part = *this;
        for (; part.col < col_end; part.col += width) {
            part.col_end = min(part.col + width, col_end);
            f(part);
        }
    }
};

// Offset of an element in an image.
__device__ __forceinline__ int64_t offset(const Tiling& t, int row, int col) { return int64_t(row) * t.cols + col; }

// Values in shared memory, one 32-bit word of all values after another, with a gap after every 32. It avoids bank
// conflicts both when threads access consecutive values and when each accesses V values.
template <class A> struct SharedArray {
    static constexpr int kWords = sizeof(A) / sizeof(uint32_t);
    uint32_t* words;
    int pitch;  // stride of the words of a value

    __host__ __device__ static constexpr int pitch_of(int count) { return count + count / kWarp; }
    __host__ __device__ static constexpr size_t bytes(int count) { return sizeof(A) * pitch_of(count); }

    __device__ SharedArray(void* shared, int count) : words(static_cast<uint32_t*>(shared)), pitch(pitch_of(count)) {}
    __device__ __forceinline__ void put(int i, const A& v) const {
        uint32_t of_v[kWords];
        memcpy(of_v, &v, sizeof v);
        for (int word = 0; word < kWords; ++word) words[word * pitch + i + i / kWarp] = of_v[word];
    }
    __device__ __forceinline__ A get(int i) const {
        uint32_t of_v[kWords];
        for (int word = 0; word < kWords; ++word) of_v[word] = words[word * pitch + i + i / kWarp];
        A v;
        memcpy(&v, of_v, sizeof v);
        return v;
    }
};

constexpr int kStaged = 1024;  // rows, or reduced indices, in shared memory at a time

// Rows of a tile in shared memory at a time: a multiple of kBatch.
CBAM_ANYWHERE inline int staged_rows(const Tiling& t) {
    const int rows = t.tile_rows < kStaged ? t.tile_rows : kStaged;
    return (rows + kBatch - 1) / kBatch * kBatch;
}

// A value per row of a run and per column of a part, in shared memory.
template <class F, int V> struct TileSides {
    F* rows;  // of a run
    WordNumbers<F, V> columns;

    CBAM_ANYWHERE static size_t bytes(const Tiling& t) {
        return staged_rows(t) * sizeof(F) + WordNumbers<F, V>::bytes(t.lanes * V);
    }
    __device__ TileSides(unsigned char* shared, const Tiling& t)
        : rows(reinterpret_cast<F*>(shared)), columns(rows + staged_rows(t), t.lanes * V) {}
};

// Calls visit(first, last) for each run of kStaged rows. First calls of_row(row, index in the run) for the rows of the
// run and, in the first run, of_column(column, index in the tile) for all columns. Consecutive threads have consecutive
// indices. Begins with a barrier.
template <class OfRow, class OfColumn, class Visit>
__device__ __forceinline__ void each_run(const Tile& tile, OfRow of_row, OfColumn of_column, Visit visit) {
#pragma unroll 1
    for (int first = tile.row; first < tile.row_end; first += kStaged) {
        const int last = min(first + kStaged, tile.row_end);
        __syncthreads();
        if (first == tile.row)
#pragma unroll 1
            for (int i = tile.col + int(threadIdx.x); i < tile.col_end; i += kThreads) of_column(i, i - tile.col);
#pragma unroll 1
        for (int i = first + int(threadIdx.x); i < last; i += kThreads) of_row(i, i - first);
        __syncthreads();
        visit(first, last);
    }
}

// Shared memory of merge_groups, in bytes.
template <class A, int V> constexpr size_t kMergeBytes = SharedArray<A>::bytes(kThreads * V);

// Merges the values of V columns over the groups of the block. Thread i < lanes V returns column i.
template <int V, class A> __device__ __forceinline__ A merge_groups(const A (&mine)[V], int lanes, void* shared) {
    const SharedArray<A> sums(shared, kThreads * V);
    for (int j = 0; j < V; ++j) sums.put(threadIdx.x * V + j, mine[j]);
    __syncthreads();
    const int column = threadIdx.x % (lanes * V);
    A total = sums.get(column);
    for (int other = lanes; other < kThreads; other += lanes) total = merge(total, sums.get(other * V + column));
    return total;
}

}  // namespace cbam::cuda
