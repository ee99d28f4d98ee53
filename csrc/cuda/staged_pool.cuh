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

    Rows<const F> gate;  // null: ones
    // (parts, length) for each image; a mean of ``count`` elements, or, with count 1, a sum.
    Rows<F> mean, max;
    Rows<int32_t> argmax;
    int length;
    F count;

    __device__ __forceinline__ Pool of(int64_t image) const {
        return {{gate.of(image), 0}, {mean.of(image), 0}, {max.of(image), 0}, {argmax.of(image), 0}, length, count};
    }
    __device__ __forceinline__ F factor(int i) const { return gate.data ? gate.data[i] : F(1); }
    __device__ __forceinline__ Sum start(int i) const { return {F(0), {F(-INFINITY), i}}; }
    // Elements come in the order of their indices, so a later one must be larger, or the first NaN.
    __device__ __forceinline__ void add(Sum& sum, F v, F factor, int, int i) const {
        v *= factor;
        sum.total += v;
        const bool better = !(v <= sum.top.value) && sum.top.value == sum.top.value;
        sum.top.value = better ? v : sum.top.value;
        sum.top.index = better ? i : sum.top.index;
    }
    __device__ __forceinline__ void store(Sum sum, int kept, int part) const {
        const int64_t at = int64_t(part) * length + kept;
        mean.data[at] = sum.total / count;
        max.data[at] = sum.top.value;
        argmax.data[at] = sum.top.index;
    }
};

}  // namespace cbam::cuda
