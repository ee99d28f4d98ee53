// The tiles of the passes over x. Those of passes with sums depend on the shape of an image alone, so that an image has
// the same results in every batch.
#pragma once

#include <algorithm>

#include "staged_tile.cuh"

namespace cbam::cuda {

// An image as a matrix, how many elements one access takes, and how many a cache line has.
struct Matrix {
    int rows, cols, vector, line;

    Matrix(const Problem& p, int vector, int element_size)
        : rows(p.channels_last ? p.HW() : p.C),
          cols(p.channels_last ? p.C : p.HW()),
          vector(vector),
          line(128 / element_size) {}

    Tiling tiling(int lanes, int64_t tile_rows, int64_t tile_cols) const {
        const int row_tiles = ceil_div(rows, tile_rows), col_tiles = ceil_div(cols, tile_cols);
        return {rows, cols, lanes, int(tile_rows), int(tile_cols), row_tiles, col_tiles};
    }

    // That take a row at once, or as much of it as a warp can.
    int lanes() const { return lanes_for(ceil_div(cols, vector)); }

    // Parts of about the same size, at most this, each a multiple of ``unit``.
    static int64_t even_parts(int64_t size, int64_t most, int64_t unit) {
        const int64_t parts = ceil_div(size, most);
        return ceil_div(ceil_div(size, parts), unit) * unit;
    }

    // Sums along the rows. ``whole``: a tile has all columns, so that there is nothing to join.
    Tiling along(bool whole) const {
        constexpr int kSteps = 8;  // of a thread, in a row
        const int n = lanes();
        const int64_t tile_cols = whole ? cols : even_parts(cols, n * vector * kSteps, vector);
        return tiling(n, kThreads / n * kBatch, tile_cols);
    }

    // Sums across the rows. Tiles are as narrow as a cache line allows while that leaves threads rows to sum.
    Tiling across(bool whole) const {
        constexpr int kSteps = 32;   // rows of a thread
        constexpr int kMost = 1024;  // of a tile: each is one more part to join
        int n = lanes();
        const int tile_rows = whole ? rows : even_parts(rows, kMost, 1);
        while (n / 2 * vector >= line && tile_rows >= 2 * kSteps * (kThreads / n)) n /= 2;
        return tiling(n, tile_rows, n * vector);
    }

    // Sums both ways.
    Tiling both() const {
        constexpr int kSteps = 16;  // rows of a thread, where a row takes a warp
        const int n = lanes();
        const int64_t most = std::max(kSteps * kThreads / kWarp, 2 * kBatch * (kThreads / n));
        return tiling(n, even_parts(rows, most, 1), n * vector);
    }

    // No sums: as many rows as leave blocks enough for any GPU.
    Tiling elementwise(int64_t images) const {
        constexpr int64_t kEnough = 2048;
        const int n = lanes(), step = kThreads / n * kBatch;
        int64_t tile_rows = 4 * step;
        while (tile_rows > step && images * tiling(n, tile_rows, n * vector).blocks() < kEnough) tile_rows /= 2;
        return tiling(n, tile_rows, n * vector);
    }
};

}  // namespace cbam::cuda
