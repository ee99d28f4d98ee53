// The arguments of the items: the tensors, the tilings, and the workspace through which items pass values.
#pragma once

#include "image.cuh"
#include "tiling.h"

namespace cbam::cuda {

// Consecutive 256-byte aligned buffers; empty ones are null. With a null base, it only computes their size.
struct Arena {
    char* base;
    int64_t used = 0;

    template <class E> E* take(int64_t n) {
        E* const at = base && n ? reinterpret_cast<E*>(base + used) : nullptr;
        used += ceil_div(n * int64_t(sizeof(E)), 256) * 256;
        return at;
    }
};

// Images of an item of the MLP. With many weights, several images share each read of a weight.
inline int images_of_mlp(const Problem& p) { return p.C <= kOneBlock ? 1 : kImages; }

template <class F> struct Forward {
    Layout p;
    Tiling pool, strip;  // tiles of the channel pool; strips
    int images;          // per item of the MLP
    bool gates;          // whether to compute the gates
    // Partial pools, (N, tiles, C).
    F *total, *max;
    int32_t* argmax;
    int64_t bytes;

    Forward(const Problem& p, const Matrix& m, bool gates, void* base)
        : p(p), pool(m.pool()), strip(m.strip()), images(images_of_mlp(p)), gates(gates) {
        const int64_t sums = gates && p.channel ? p.N * parts() * p.C : 0, maxima = p.switches.no_max ? 0 : sums;
        Arena arena{static_cast<char*>(base)};
        total = arena.take<F>(sums);
        max = arena.take<F>(maxima);
        argmax = arena.take<int32_t>(maxima);
        bytes = arena.used;
    }
    // Partial pools of a channel.
    CBAM_ANYWHERE int parts() const { return p.channels_last ? pool.row_tiles : pool.col_tiles; }
};

template <class F> struct Backward {
    Layout p;
    Tiling strip;
    int images;           // per item of the MLP
    bool products_alone;  // for gate_grads, whose results are dg and ds
    F* dg_sums;           // (N, strips, C): partial sums of s x dy
    F* map_sums;          // (N, strips, C): partial sums of g dg through the maps
    F* dz;                // (N, HW); null: zeros
    F* dmaps;             // (N, 2, HW): gradients of g x through the mean, and at the argmax
    F* dpools;            // (N, 2, C): gradients of x through the mean, and at the argmax
    int64_t bytes;

    Backward(const Problem& p, const Matrix& m, bool products_alone, void* base)
        : p(p), strip(m.strip()), images(images_of_mlp(p)), products_alone(products_alone) {
        const int64_t parts = p.N * strip.tiles() * p.C;
        Arena arena{static_cast<char*>(base)};
        dg_sums = arena.take<F>(p.given || !p.channel ? 0 : parts);
        map_sums = arena.take<F>(maps_reach_channels() ? parts : 0);
        dz = (F*)p.ds;
        if (!p.given && !products_alone) dz = arena.take<F>(p.spatial ? p.N * p.HW() : 0);
        dmaps = arena.take<F>(p.spatial ? 2 * p.N * p.HW() : 0);
        dpools = arena.take<F>(p.channel ? 2 * p.N * p.C : 0);
        bytes = arena.used;
    }
    CBAM_ANYWHERE bool maps_reach_channels() const { return p.spatial && p.channel; }
    __device__ const F* dmaps_of(int64_t image) const { return p.spatial ? dmaps + image * 2 * p.HW() : nullptr; }
    __device__ const F* dpools_of(int64_t image) const { return p.channel ? dpools + image * 2 * p.C : nullptr; }
};

}  // namespace cbam::cuda
