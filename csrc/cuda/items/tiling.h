// The tilings of the items. They depend only on the shape of an image, so an image has the same results in every batch.
#pragma once

#include <algorithm>

#include "tile.cuh"

namespace cbam::cuda {

constexpr int64_t kTileBytes = 48 << 10;  // of x in a tile, about
constexpr int kUnit = 8;                  // pixels of a 32-byte sector in a float32 map

// An image as a matrix, and the elements of an access and of a cache line.
struct Matrix {
    int rows, cols, vector, size, line;
    bool channels_last;

    Matrix(const Problem& p, int vector, int element_size)
        : rows(p.channels_last ? p.HW() : p.C),
          cols(p.channels_last ? p.C : p.HW()),
          vector(vector),
          size(element_size),
          line(128 / element_size),
          channels_last(p.channels_last) {}

    Tiling tiling(int lanes, int64_t tile_rows, int64_t tile_cols) const {
        const int row_tiles = ceil_div(rows, tile_rows), col_tiles = ceil_div(cols, tile_cols);
        return {rows, cols, lanes, int(tile_rows), int(tile_cols), row_tiles, col_tiles};
    }

    // Lanes that take a row at once, or as much of it as a warp can.
    int lanes() const { return lanes_for(ceil_div(cols, vector)); }

    // Returns the size of about equal parts of at most ``most``, rounded up to a multiple of ``unit``.
    static int64_t even_parts(int64_t size, int64_t most, int64_t unit) {
        const int64_t parts = ceil_div(size, most);
        return ceil_div(ceil_div(size, parts), unit) * unit;
    }

    // Tiles of the channel pool: some pixels of a few channels or, channels_last, of a cache line of channels.
    Tiling pool() const {
        int n = lanes();
        if (channels_last) {
            while (n / 2 * vector >= line) n /= 2;
            const int64_t most = std::max<int64_t>(kTileBytes / (n * vector * size), kThreads / n * kBatch);
            return tiling(n, even_parts(rows, most, kUnit), n * vector);
        }
        constexpr int kSteps = 4;  // of a thread along a row
        return tiling(n, kThreads / n * kBatch, even_parts(cols, n * vector * kSteps, vector));
    }

    // Strips: all channels of some pixels.
    Tiling strip() const {
        int n = lanes();
        if (channels_last) {
            const int64_t step = kThreads / n * kBatch, most = kTileBytes / (int64_t(cols) * size) / step * step;
            return tiling(n, even_parts(rows, std::max(most, step), kUnit), cols);
        }
        while (n / 2 * vector >= line && int64_t(rows) * n * vector * size > kTileBytes) n /= 2;
        return tiling(n, rows, n * vector);
    }
};

}  // namespace cbam::cuda
