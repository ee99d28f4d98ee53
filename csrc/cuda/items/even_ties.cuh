// The items that read x, for even ties: tied elements share the gradient of a maximum evenly, as in the backward of
// amax. The forward counts them into index; the backward compares x again, so dx needs a further read of x. If no
// element equals the maximum, which is then NaN, a share is 0 / 0.
//
// Reads: as forward.cuh and backward.cuh; even_input_item also x and the maxima.
// Writes: as forward.cuh and backward.cuh, with counts instead of argmax.
// Shared memory: item_bytes (bytes.h).
#pragma once

#include "image.cuh"
#include "pool.cuh"
#include "tile.cuh"
#include "work.h"

namespace cbam::cuda {

// The sum, the maximum and, in top.index, the number of tied elements.
template <class F> struct EvenSum {
    F total;
    Maximum<F> top;
};

template <class F> __device__ __forceinline__ EvenSum<F> merge(EvenSum<F> a, EvenSum<F> b) {
    return {a.total + b.total, merge_counts(a.top, b.top)};
}

template <class F> __device__ __forceinline__ EvenSum<F> from_lane(EvenSum<F> v, int step) {
    return {from_lane(v.total, step), {from_lane(v.top.value, step), from_lane(v.top.index, step)}};
}

// Values of a pixel or channel: ``gate`` multiplies x before the comparison, ``factor`` multiplies dy, ``mean`` is
// added to all elements, ``share`` to those equal to the maximum, ``top``.
template <class F> struct EvenSide {
    F gate, factor, mean, top, share;
};

// Sum, maximum and count of x times the gate of the reduced index.
template <class F> struct EvenPool {
    using Sum = EvenSum<F>;
    const F* gate;
    F *mean, *max;
    int32_t* count;
    F elements;

    __device__ __forceinline__ EvenSide<F> reduced(int i) const { return {gate ? gate[i] : F(1)}; }
    __device__ __forceinline__ EvenSide<F> kept(int) const { return {}; }
    __device__ __forceinline__ Sum start() const { return {F(0), {F(-INFINITY), 0}}; }
    __device__ __forceinline__ void add(Sum& sum, F v, const EvenSide<F>& reduced, const EvenSide<F>&) const {
        v *= reduced.gate;
        sum.total += v;
        if (v == sum.top.value) ++sum.top.index;
        else if (v > sum.top.value) sum.top = {v, 1};
        else if (v != v) sum.top = {v, 0};
    }
    __device__ __forceinline__ void store(const Sum& sum, int i) const {
        mean[i] = sum.total / elements;
        max[i] = sum.top.value;
        count[i] = sum.top.index;
    }
};

// sums[c] = g times the sum over pixels of x times the gradient of g x through both maps.
template <class F> struct EvenMapProducts {
    using Sum = F;
    const F *gate, *mean, *max, *share;
    F* sums;

    __device__ __forceinline__ EvenSide<F> reduced(int q) const { return {F(0), F(0), mean[q], max[q], share[q]}; }
    __device__ __forceinline__ EvenSide<F> kept(int c) const { return {gate[c]}; }
    __device__ __forceinline__ Sum start() const { return F(0); }
    __device__ __forceinline__ void add(Sum& sum, F v, const EvenSide<F>& pixel, const EvenSide<F>& channel) const {
        sum += v * (pixel.mean + F(v * channel.gate == pixel.top) * pixel.share);
    }
    __device__ __forceinline__ void store(Sum sum, int c) const { sums[c] = gate[c] * sum; }
};

// Reduces along the rows of a tile: a sum per row.
template <class T, int V, class Operation>
__device__ __forceinline__ void even_along(const T* x, const Tiling& t, const Tile& tile, const Operation& operation) {
    for (int row0 = tile.row; row0 < tile.row_end; row0 += tile.groups * kBatch) {
        const int row = row0 + tile.group * kBatch;
        typename Operation::Sum sums[kBatch];
        EvenSide<Acc<T>> kept[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            sums[i] = operation.start(), kept[i] = operation.kept(min(row + i, t.rows - 1));
        for (int col = tile.col + tile.lane * V; col < tile.col_end; col += t.lanes * V) {
            Packed<T, V> packed[kBatch] = {};
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (row + i < tile.row_end) packed[i].load(x + offset(t, row + i, col));
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const auto reduced = operation.reduced(col + j);
#pragma unroll
                for (int i = 0; i < kBatch; ++i) operation.add(sums[i], to_acc(packed[i].v[j]), reduced, kept[i]);
            }
        }
        const auto sum = merge_lanes(sums, t.lanes);
        if (tile.lane < kBatch && row + tile.lane < tile.row_end) operation.store(sum, row + tile.lane);
    }
}

// Reduces down at most lanes V columns of a tile: a sum per column. A barrier precedes the use of shared memory.
template <class T, int V, class Operation>
__device__ __forceinline__ void even_across(const T* x, const Tiling& t, const Tile& tile, const Operation& operation,
                                            unsigned char* shared) {
    const int col = tile.col + tile.lane * V;
    typename Operation::Sum sums[V];
    EvenSide<Acc<T>> kept[V];
    for (int j = 0; j < V; ++j) sums[j] = operation.start(), kept[j] = operation.kept(min(col + j, t.cols - 1));
    for (int row = tile.row + tile.group; row < tile.row_end && col < tile.col_end; row += tile.groups) {
        Packed<T, V> packed;
        packed.load(x + offset(t, row, col));
        const auto reduced = operation.reduced(row);
#pragma unroll
        for (int j = 0; j < V; ++j) operation.add(sums[j], to_acc(packed.v[j]), reduced, kept[j]);
    }
    __syncthreads();
    const auto sum = merge_groups(sums, t.lanes, shared);
    const int column = threadIdx.x, mine = tile.col + column;
    if (column < t.lanes * V && mine < tile.col_end) operation.store(sum, mine);
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void even_pool_item(const Forward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    const Tile tile(a.pool, index);
    const int64_t at = (n * a.parts() + (channels_last ? tile.row_tile : tile.col_tile)) * a.p.C;
    const EvenPool<F> pool{nullptr, a.total + at, a.max + at, a.argmax + at, F(1)};
    const T* const x = Image<F>{a.p, n}.of((const T*)a.p.x);
    if constexpr (channels_last) even_across<T, V>(x, a.pool, tile, pool, shared);
    else even_along<T, V>(x, a.pool, tile, pool);
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void even_maps_item(const Forward<Acc<T>>& a, int64_t n, int index, unsigned char* shared) {
    using F = Acc<T>;
    const Tile tile(a.strip, index);
    const Image<F> image{a.p, n};
    const EvenPool<F> pool{image.g(), image.mean_c(), image.max_c(), image.argmax_c(), F(a.p.C)};
    const T* const x = image.of((const T*)a.p.x);
    if constexpr (channels_last) even_along<T, V>(x, a.strip, tile, pool);
    else even_across<T, V>(x, a.strip, tile, pool, shared);
}

// The partial sums of map_gradients_item. dmaps has the shares already.
template <class T, int V, bool channels_last>
__device__ __forceinline__ void even_map_products(const Backward<Acc<T>>& a, const Image<Acc<T>>& image,
                                                  const Tile& tile, int index, unsigned char* shared) {
    const auto* const dmaps = a.dmaps_of(image.n);
    const EvenMapProducts<Acc<T>> sums{image.g(), dmaps, image.max_c(), dmaps + a.p.HW(),
                                       a.map_sums + (image.n * a.strip.tiles() + index) * a.p.C};
    const T* const x = image.of((const T*)a.p.x);
    __syncthreads();  // the block has written dmaps
    if constexpr (channels_last)
        tile.each_part<V>([&](const Tile& part) { even_across<T, V>(x, a.strip, part, sums, shared); });
    else even_along<T, V>(x, a.strip, tile, sums);
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void even_input_item(const Backward<Acc<T>>& a, int64_t n, int index, const T* dy) {
    using F = Acc<T>;
    const Layout& p = a.p;
    const Tile tile(a.strip, index);
    const Image<F> image{p, n};
    const F *const dmaps = a.dmaps_of(n), *const dpools = a.dpools_of(n);
    const F *const s = image.spatial_gate(), *const g = image.g(), *const maxima = image.max_c();
    const F* const tops = dpools && !p.switches.no_max ? image.pool(p.switches.pools() - 1) : nullptr;
    const auto pixel = [&](int q) {
        const F factor = dy ? (s ? s[q] : F(1)) : F(0);
        return dmaps ? EvenSide<F>{F(0), factor, dmaps[q], maxima[q], dmaps[p.HW() + q]} : EvenSide<F>{F(0), factor};
    };
    const auto channel = [&](int c) {
        const F gate = g ? g[c] : F(1), factor = dy || p.spatial ? gate : F(1), mean = dpools ? dpools[c] : F(0);
        return tops ? EvenSide<F>{gate, factor, mean, tops[c], dpools[p.C + c]} : EvenSide<F>{gate, factor, mean};
    };
    const T *const x = image.of((const T*)p.x), *const of_dy = image.of(dy);
    T* const dx = image.of((T*)p.dx);
    tile.each_part<V>([&](const Tile& part) {
        const int col = part.col + part.lane * V;
        if (col >= part.col_end) return;
        EvenSide<F> column[V];
        for (int j = 0; j < V; ++j) column[j] = channels_last ? channel(col + j) : pixel(col + j);
#pragma unroll 2
        for (int row = part.row + part.group; row < part.row_end; row += part.groups) {
            const EvenSide<F> of_row = channels_last ? pixel(row) : channel(row);
            F v[V], d[V] = {};
            load<V>(x + offset(a.strip, row, col), v);
            if (of_dy) load<V>(of_dy + offset(a.strip, row, col), d);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                const EvenSide<F>& q = channels_last ? of_row : column[j];
                const EvenSide<F>& c = channels_last ? column[j] : of_row;
                const F of_gated = d[j] * q.factor + q.mean + F(v[j] * c.gate == q.top) * q.share;
                d[j] = of_gated * c.factor + c.mean + F(v[j] == c.top) * c.share;
            }
            store<V>(dx + offset(a.strip, row, col), d);
        }
    });
}

}  // namespace cbam::cuda
