// What the passes of a group of images leave for each other, in the workspace.
#pragma once

#include "staged_tiling.h"

namespace cbam::cuda {

// Consecutive 256-byte aligned buffers; from a null base it only adds up their size.
struct Arena {
    char* base;
    int64_t used = 0;

    template <class E> E* take(int64_t n) {
        E* const at = base ? reinterpret_cast<E*>(base + used) : nullptr;
        used += ceil_div(n * int64_t(sizeof(E)), 256) * 256;
        return at;
    }
};

// (parts, C) for each image.
template <class F> struct ForwardSpace {
    Tiling pool;
    int parts;
    F *total, *max;
    int32_t* argmax;
    int64_t bytes;

    ForwardSpace(const Problem& p, const Matrix& m, int64_t images, void* base) {
        pool = p.channels_last ? m.across(false) : m.along(false);
        parts = p.channels_last ? pool.row_tiles : pool.col_tiles;
        Arena arena{static_cast<char*>(base)};
        total = arena.take<F>(images * parts * p.C);
        max = arena.take<F>(images * parts * p.C);
        argmax = arena.take<int32_t>(images * parts * p.C);
        bytes = arena.used;
    }
};

// Of products: (col_tiles, rows) and (row_tiles, cols) for each image.
template <class F> struct ProductsSpace {
    Tiling products;
    F *along, *down;
    int64_t bytes;

    ProductsSpace(const Problem&, const Matrix& m, int64_t images, void* base) {
        products = m.both();
        Arena arena{static_cast<char*>(base)};
        along = arena.take<F>(images * products.col_tiles * m.rows);
        down = arena.take<F>(images * products.row_tiles * m.cols);
        bytes = arena.used;
    }
};

template <class F> struct BackwardSpace {
    ProductsSpace<F> products;
    Tiling maps;
    int parts;
    F *dg, *dz;  // (C), (HW)
    F* dmaps;    // (2, HW)
    F* through;  // (parts, C), of what reaches g dg through the maps
    F* dpools;   // (2, C)
    int64_t bytes;

    BackwardSpace(const Problem& p, const Matrix& m, int64_t images, void* base) : products(p, m, images, base) {
        maps = p.channels_last ? m.across(false) : m.along(false);
        parts = p.channels_last ? maps.row_tiles : maps.col_tiles;
        Arena arena{static_cast<char*>(base), products.bytes};
        dg = arena.take<F>(images * p.C);
        dz = arena.take<F>(images * p.HW());
        dmaps = arena.take<F>(images * 2 * p.HW());
        through = arena.take<F>(images * parts * p.C);
        dpools = arena.take<F>(images * 2 * p.C);
        bytes = arena.used;
    }
};

}  // namespace cbam::cuda
