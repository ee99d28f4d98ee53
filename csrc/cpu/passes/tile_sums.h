// Sums over a matrix both along its rows and along its columns. Threads cannot split such a pass by rows or by columns,
// so it goes tile by tile, and the partial sums of the tiles are added afterwards. The tiles and the order of all
// additions depend only on the shape.
#pragma once

#include "../parts.h"
#include "scale_and_dots.h"

namespace {

constexpr int64_t kTileRows = kBlock;
constexpr int64_t kTileCols = 512;  // with its rows, 128 KB of float32: enough work for a thread

// Partial sums (n, size) of size rows or columns from n tiles, followed by space for the totals.
template <class F> struct Sums {
    F* data;
    int64_t n, size;

    // A row with the totals over the tiles in this range, added in double.
    CBAM_PASS const F* total(Range range) const {
        if (n == 1) return data;
        each_tile<F>(range.size(), [&]<int width>(int64_t c, Count<width>, auto last) {
            F* at = data + range.first + c;
            Totals<F, width> total;
            for (int64_t i = 0; i < n; ++i) {
                Vec<F> v[width];
                each_in_tile<width>(last,
                                    [&](int j, auto lanes) { v[j] = load(at + i * size + j * kLanes<F>, lanes); });
                total.add(v);
            }
            each_in_tile<width>(
                last, [&](int j, auto lanes) { store(at + n * size + j * kLanes<F>, total.times(j, 1), lanes); });
        });
        return data + n * size;
    }
};

// The elements of rows [r0, r1) and columns [c0, c1), with along[r] for the sum of row r and down[c] for that of column
// c.
template <class F> struct Tile {
    int64_t r0, r1, c0, c1, cols;
    F *along, *down;
};

// body(tile) for a share's tiles of an image; the sums have space for all tiles.
template <class F, class Body>
void each_tile_of(const cbam::Share& share, bool channels_last, Sums<F> of_channels, Sums<F> of_pixels, Body body) {
    const Sums<F> along = channels_last ? of_pixels : of_channels, down = channels_last ? of_channels : of_pixels;
    const Range part = part_of(share, along.n * down.n);
    for (int64_t i = part.first; i < part.last; ++i) {
        const int64_t across = i / down.n, below = i % down.n, r = below * kTileRows, c = across * kTileCols;
        body(Tile<F>{r, least(r + kTileRows, along.size), c, least(c + kTileCols, down.size), down.size,
                     along.data + across * along.size, down.data + below * down.size});
    }
}

}  // namespace
