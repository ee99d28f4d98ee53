// The pools of the forward, as an Operation of reduce.cuh: sum, maximum and argmax of x over the pixels, or of g x over
// the channels. Comparisons ignore NaN. If the sum is NaN, finish looks for the first NaN, which is then the maximum.
#pragma once

#include "tile.cuh"

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

template <class F, bool gated> struct Pool {
    using Sum = PoolSum<F>;
    static constexpr bool kFactors = gated;

    const F* gate;  // if gated; null: ones
    // mean = sum / count. If max is null, max and argmax are not written.
    F *mean, *max;
    int32_t* argmax;
    F count;

    __device__ __forceinline__ F factor(int i) const { return gate ? gate[i] : F(1); }
    __device__ __forceinline__ Sum start(int i) const { return {F(0), {F(-INFINITY), i}}; }
    // Indices ascend, so a later maximum must be larger. Keeps the index of the word; store finds the element.
    template <class T, int V>
    __device__ __forceinline__ void add(Sum& sum, const Packed<T, V>& word, const F (&factor)[V], int i) const {
        F v[V];
        word.unpack(v);
#pragma unroll
        for (int j = 0; gated && j < V; ++j) v[j] *= factor[j];
        const F greatest = gated ? greatest_of(v) : greatest_of(word);
        if (greatest > sum.top.value) sum.top = {greatest, i};
        sum.total += sum_of(v);
    }
    // Keeps the index of the first of N rows; store finds the element.
    template <class T, int V, int N> __device__ __forceinline__ void add(Sum (&sums)[V], const Packed<T, V> (&words)[N],
                                                                         const F (&factor)[N], int i) const {
        F greatest[V];
        if constexpr (!gated) greatest_of(words, greatest);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            F v[V];
            words[n].unpack(v);
#pragma unroll
            for (int j = 0; j < V; ++j) {
                if constexpr (gated) {
                    v[j] *= factor[n];
                    greatest[j] = n ? greater_of(greatest[j], v[j]) : v[j];
                }
                sums[j].total += v[j];
            }
        }
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (greatest[j] > sums[j].top.value) sums[j].top = {greatest[j], i};
    }
    template <class Value>
    __device__ __forceinline__ void finish(Sum& sum, int first, int last, int step, int n, Value value) const {
        if (sum.total == sum.total) return;
        for (int run = first; run < last; run += step)
            for (int i = run; i < min(run + n, last); ++i) {
                const F v = gated ? value(i) * factor(i) : value(i);
                if (v == v) continue;
                sum.top = {v, i};
                return;
            }
    }
    // The kept index is the first of n elements, unless the maximum is NaN. read(i, v) reads them again.
    template <int n, class Read> __device__ __forceinline__ void store(Sum sum, int kept, Read read) const {
        mean[kept] = sum.total / count;
        if (!max) return;
        int i = sum.top.index;
        if (n > 1 && sum.top.value == sum.top.value) {
            F v[n];
            read(i, v);
#pragma unroll
            for (int j = n - 1; j >= 0; --j)
                if (v[j] == sum.top.value) i = sum.top.index + j;
        }
        max[kept] = sum.top.value;
        argmax[kept] = i;
    }
};

// The sum only, if the maximum is not used.
template <class F> struct SumPool {
    using Sum = F;
    static constexpr bool kFactors = false;

    F* total;

    __device__ __forceinline__ Sum start(int) const { return F(0); }
    template <class T, int V>
    __device__ __forceinline__ void add(Sum& sum, const Packed<T, V>& word, const F (&)[V], int) const {
        F v[V];
        word.unpack(v);
        sum += sum_of(v);
    }
    template <class T, int V, int N>
    __device__ __forceinline__ void add(Sum (&sums)[V], const Packed<T, V> (&words)[N], const F (&)[N], int) const {
#pragma unroll
        for (int n = 0; n < N; ++n) {
            F v[V];
            words[n].unpack(v);
#pragma unroll
            for (int j = 0; j < V; ++j) sums[j] += v[j];
        }
    }
    template <class Value> __device__ __forceinline__ void finish(Sum&, int, int, int, int, Value) const {}
    template <int n, class Read> __device__ __forceinline__ void store(Sum sum, int kept, Read) const {
        total[kept] = sum;
    }
};

}  // namespace cbam::cuda
