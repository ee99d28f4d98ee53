// Operations on a word, the V elements that one access moves: sum, maximum, ReLU. Half types are processed in pairs.
#pragma once

#include "../../problem.h"
#include "device.cuh"

namespace cbam::cuda {

template <class T> struct HalvesOf;
template <> struct HalvesOf<__half> {
    using type = __half2;
};
template <> struct HalvesOf<__nv_bfloat16> {
    using type = __nv_bfloat162;
};

template <class T> using Halves = typename HalvesOf<T>::type;
template <class T, int V> constexpr bool kInPairs = sizeof(T) == 2 && V > 1;

__device__ __forceinline__ float greater_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double greater_of(double a, double b) { return fmax(a, b); }

// Adds in a tree, so that no addition waits for all others.
template <class F, int V> __device__ __forceinline__ F sum_of(F (&v)[V]) {
#pragma unroll
    for (int step = 1; step < V; step *= 2)
#pragma unroll
        for (int i = 0; i + step < V; i += 2 * step) v[i] += v[i + step];
    return v[0];
}

// Returns the maximum of the elements that are not NaN. Of zeros of both signs, it returns either.
template <class F, int V> __device__ __forceinline__ F greatest_of(const F (&v)[V]) {
    F greatest = v[0];
#pragma unroll
    for (int i = 1; i < V; ++i) greatest = greater_of(greatest, v[i]);
    return greatest;
}
template <class T, int V> __device__ __forceinline__ Acc<T> greatest_of(const Packed<T, V>& word) {
    if constexpr (kInPairs<T, V>) {
        Halves<T> pairs[V / 2];
        memcpy(pairs, word.v, sizeof pairs);
#pragma unroll
        for (int n = V / 4; n > 0; n /= 2)
#pragma unroll
            for (int i = 0; i < n; ++i) pairs[i] = __hmax2(pairs[i], pairs[i + n]);
        return fmaxf(__low2float(pairs[0]), __high2float(pairs[0]));
    } else {
        Acc<T> v[V];
        word.unpack(v);
        return greatest_of(v);
    }
}

// Computes the elementwise maximum of N words.
template <class T, int V, int N>
__device__ __forceinline__ void greatest_of(const Packed<T, V> (&words)[N], Acc<T> (&out)[V]) {
    if constexpr (kInPairs<T, V>) {
        Packed<T, V> greatest = words[0];
#pragma unroll
        for (int k = 0; k < V; k += 2) {
            Halves<T> pair, other;
            memcpy(&pair, words[0].v + k, sizeof pair);
#pragma unroll
            for (int n = 1; n < N; ++n) {
                memcpy(&other, words[n].v + k, sizeof other);
                pair = __hmax2(pair, other);
            }
            memcpy(greatest.v + k, &pair, sizeof pair);
        }
        greatest.unpack(out);
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) {
            out[j] = to_acc(words[0].v[j]);
#pragma unroll
            for (int n = 1; n < N; ++n) out[j] = greater_of(out[j], to_acc(words[n].v[j]));
        }
    }
}

// Sets v to zero where y <= 0. Where y is NaN, v is kept.
template <class T, int V> __device__ __forceinline__ void mask_by(const Packed<T, V>& y, Packed<T, V>& v) {
    if constexpr (kInPairs<T, V>) {
#pragma unroll
        for (int k = 0; k < V; k += 2) {
            Halves<T> pair;
            uint32_t bits;
            memcpy(&pair, y.v + k, sizeof pair);
            memcpy(&bits, v.v + k, sizeof bits);
            bits &= ~__hle2_mask(pair, Halves<T>{from_acc<T>(0), from_acc<T>(0)});
            memcpy(v.v + k, &bits, sizeof bits);
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j)
            if (to_acc(y.v[j]) <= 0) v.v[j] = from_acc<T>(0);
    }
}

// max(v, 0); NaN stays NaN.
template <class T, int V> __device__ __forceinline__ void relu(Packed<T, V>& v) {
    if constexpr (kInPairs<T, V>) {
#pragma unroll
        for (int k = 0; k < V; k += 2) {
            Halves<T> pair;
            memcpy(&pair, v.v + k, sizeof pair);
            pair = __hmax2_nan(pair, Halves<T>{from_acc<T>(0), from_acc<T>(0)});
            memcpy(v.v + k, &pair, sizeof pair);
        }
    } else {
#pragma unroll
        for (int j = 0; j < V; ++j) v.v[j] = from_acc<T>(relu(to_acc(v.v[j])));
    }
}

// Loads N values. If N is a multiple of kVector, p must be aligned to 16 bytes.
template <int N, class F> __device__ __forceinline__ void load_numbers(const F* p, F (&v)[N]) {
    constexpr int kOfAccess = N % kVector<F> == 0 ? kVector<F> : 1;
#pragma unroll
    for (int i = 0; i < N; i += kOfAccess) {
        Packed<F, kOfAccess> some;
        some.load(p + i);
        memcpy(v + i, some.v, sizeof some);
    }
}

// One value per column, in shared memory. A thread reads the V values of its word. Each 16 bytes of a word are in a
// plane of their own, which avoids bank conflicts both when threads read words and when they write columns.
template <class F, int V> struct WordNumbers {
    static constexpr int kOfAccess = V % kVector<F> == 0 ? kVector<F> : 1, kPlanes = V / kOfAccess;
    F* data;
    int plane;  // stride of the planes

    CBAM_ANYWHERE static constexpr int plane_of(int columns) {
        const int all = (columns + V - 1) / V * kOfAccess, half = 64 / sizeof(F);
        return kPlanes == 1 ? all : (all + half - 1) / half * half | half;
    }
    CBAM_ANYWHERE static constexpr size_t bytes(int columns) {
        return (kPlanes * plane_of(columns) * sizeof(F) + 15) / 16 * 16;
    }
    __device__ WordNumbers(void* shared, int columns) : data(static_cast<F*>(shared)), plane(plane_of(columns)) {}
    __device__ __forceinline__ F& at(int column) const {
        return data[column % V / kOfAccess * plane + column / V * kOfAccess + column % kOfAccess];
    }
    // Loads the values of one plane, or of all planes.
    __device__ __forceinline__ void load_plane(int k, int word, F* v) const {
        Packed<F, kOfAccess> some;
        some.load(data + k * plane + word * kOfAccess);
        memcpy(v, some.v, sizeof some);
    }
    __device__ __forceinline__ void load(int word, F (&v)[V]) const {
#pragma unroll
        for (int k = 0; k < kPlanes; ++k) load_plane(k, word, v + k * kOfAccess);
    }
};

}  // namespace cbam::cuda
