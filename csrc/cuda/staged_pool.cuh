// The two pools of the forward, as an Operation of staged_reduce.cuh: sum, maximum and place of the maximum of x over
// the pixels, and of g x over the channels.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

template <class F> struct PoolSum {
    F total;
    Maximum<F> top;
};

template <class F> __device__ __forceinline__ PoolSum<F> merge(PoolSum<F> a, PoolSum<F> b) {
    return {a.total + b.total, larger(a.top, b.top)};
}

template <class F> __device__ __forceinline__ PoolSum<F> from_lane(PoolSum<F> v, int step) {
    return {from_lane(v.total, step), {from_lane(v.top.value, step), from_lane(v.top.index, step)}};
}

template <class F> struct Pool {
    using Sum = PoolSum<F>;
    using Factor = F;

    const F* gate;  // null: ones
    // A mean of ``count`` elements, or, with count 1, a sum. Where max is null, neither it nor its place is wanted.
    F *mean, *max;
    int32_t* argmax;
    F count;

    __device__ __forceinline__ F factor(int i) const { return gate ? gate[i] : F(1); }
    __device__ __forceinline__ Sum start(int i) const { return {F(0), {F(-INFINITY), i}}; }
    // Elements come in the order of their indices, so a later one must be larger, or the first NaN.
    __device__ __forceinline__ void add(Sum& sum, F v, F factor, int, int i) const {
        v *= factor;
        sum.total += v;
        const bool better = !(v <= sum.top.value) && sum.top.value == sum.top.value;
        sum.top.value = better ? v : sum.top.value;
        sum.top.index = better ? i : sum.top.index;
    }
    __device__ __forceinline__ void store(Sum sum, int kept) const {
        mean[kept] = sum.total / count;
        if (!max) return;
        max[kept] = sum.top.value;
        argmax[kept] = sum.top.index;
    }
};

}  // namespace cbam::cuda
