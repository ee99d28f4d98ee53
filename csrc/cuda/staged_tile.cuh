// How a pass of the staged schedule goes over its images. An image is a matrix as it lies in memory: C rows of HW
// columns or, channels_last, HW rows of C columns. A block takes a tile of one image. Of its threads, ``lanes``
// neighbours form a group and go along the rows, V columns each; a group takes kBatch rows at a time, so that each
// thread has as many 16-byte loads under way.
#pragma once

#include "../problem.h"
#include "device.cuh"
#include "launcher.h"

namespace cbam::cuda {

struct Tiling {
    int rows, cols;            // of an image
    int lanes;                 // a power of two from kBatch to kWarp
    int tile_rows, tile_cols;  // of a block
    int row_tiles, col_tiles;  // of an image
    // From the last image to the first: where L2 has not room for all of them, it has those that the pass before this
    // one came to last.
    bool backwards = false;

    int64_t blocks() const { return int64_t(row_tiles) * col_tiles; }
};

struct Tile {
    int64_t image;  // of those of the launch
    int row_tile, col_tile;
    int row, row_end, col, col_end;  // the tile
    int lane, group, groups;         // this thread

    __device__ explicit Tile(const Tiling& t) {
        const unsigned block = t.backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
        const unsigned blocks = unsigned(t.row_tiles) * t.col_tiles, place = block % blocks;
        image = block / blocks;
        row_tile = place / t.col_tiles;
        col_tile = place % t.col_tiles;
        row = row_tile * t.tile_rows;
        row_end = min(row + t.tile_rows, t.rows);
        col = col_tile * t.tile_cols;
        col_end = min(col + t.tile_cols, t.cols);
        lane = threadIdx.x % t.lanes;
        group = threadIdx.x / t.lanes;
        groups = kThreads / t.lanes;
    }
};

// Where an element lies in an image.
__device__ __forceinline__ int64_t place(const Tiling& t, int row, int col) { return int64_t(row) * t.cols + col; }

// Small arrays of one number for each channel or pixel, one a row of ``stride`` for each image; null stands for a
// value that is the same everywhere.
template <class F> struct Rows {
    F* data;
    int64_t stride;

    __device__ __forceinline__ F* of(int64_t image) const { return data ? data + image * stride : nullptr; }
};

// Values in shared memory, word by word of all of them, with a gap behind every 32: so threads stay out of each other's
// banks whether they go along neighbours or each along V of its own.
template <class A> struct SharedArray {
    static constexpr int kWords = sizeof(A) / sizeof(uint32_t);
    uint32_t* words;
    int pitch;  // from a word of an element to its next

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

// Of a tile's rows in shared memory: as many numbers as whole batches have.
__host__ __device__ inline int row_numbers(const Tiling& t) { return (t.tile_rows + kBatch - 1) / kBatch * kBatch; }

// Calls of_row(i) for each row of the tile, and of_column(i) for each column, before the block goes on. Neighbours have
// neighbours, whatever they then need.
template <class OfRow, class OfColumn>
__device__ __forceinline__ void fill_sides(const Tile& tile, OfRow of_row, OfColumn of_column) {
    for (int i = tile.row + int(threadIdx.x); i < tile.row_end; i += kThreads) of_row(i);
    for (int i = tile.col + int(threadIdx.x); i < tile.col_end; i += kThreads) of_column(i);
    __syncthreads();
}

// Indices first ... last - 1.
struct Range {
    int first, last;
};

// Shared memory of merge_groups.
template <class A, int V> constexpr size_t kMergeBytes = SharedArray<A>::bytes(kThreads * V);

// Merges, over the groups of the block, what each thread has for its V columns; thread i < lanes V ends with column i.
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
