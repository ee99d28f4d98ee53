// Device code that all kernels use: conversions, 16-byte accesses, argmax, sums over a warp. With CBAM_EMULATION, g++
// compiles the same source for the CPU, and the CUDA headers come from tests/support/emulation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <type_traits>

#include "../../activations.h"
#include "sizes.h"

#ifdef CBAM_EMULATION
#define CBAM_SHARED(name) unsigned char* name = emulation::dynamic_shared()
#define CBAM_SHARED_VALUE(type, name) type& name = *static_cast<type*>(emulation::static_shared(sizeof(type)))
#else
#define CBAM_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define CBAM_SHARED_VALUE(type, name) __shared__ type name
#endif

namespace cbam::cuda {

template <class T> struct AccOf {
    using type = float;
};
template <> struct AccOf<double> {
    using type = double;
};
template <class T> using Acc = typename AccOf<T>::type;

__device__ __forceinline__ float to_acc(float v) { return v; }
__device__ __forceinline__ double to_acc(double v) { return v; }
__device__ __forceinline__ float to_acc(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_acc(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T> __device__ __forceinline__ T from_acc(Acc<T> v) { return v; }
template <> __device__ __forceinline__ __half from_acc<__half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// Elements of a 16-byte access.
template <class T> constexpr int kVector = 16 / sizeof(T);

// V elements that one access moves: 16 bytes, 8 bytes or one element. Packed half types take half the registers.
template <class T, int V> struct alignas(V * sizeof(T)) Packed {
    T v[V];

    __device__ __forceinline__ void load(const T* p) {
        if constexpr (V * sizeof(T) == 16) {
            const uint4 bits = *reinterpret_cast<const uint4*>(p);
            memcpy(v, &bits, sizeof v);
        } else if constexpr (V > 1) {
            static_assert(V * sizeof(T) == 8);
            const uint2 bits = *reinterpret_cast<const uint2*>(p);
            memcpy(v, &bits, sizeof v);
        } else {
            v[0] = *p;
        }
    }
    __device__ __forceinline__ void store(T* p) const {
        if constexpr (V * sizeof(T) == 16) {
            uint4 bits;
            memcpy(&bits, v, sizeof v);
            *reinterpret_cast<uint4*>(p) = bits;
        } else if constexpr (V > 1) {
            uint2 bits;
            memcpy(&bits, v, sizeof v);
            *reinterpret_cast<uint2*>(p) = bits;
        } else {
            *p = v[0];
        }
    }
    __device__ __forceinline__ void unpack(Acc<T> (&out)[V]) const {
        if constexpr (std::is_same_v<T, __nv_bfloat16> && V > 1) {  // one instruction per element
            uint32_t pairs[V / 2];
            memcpy(pairs, v, sizeof v);
#pragma unroll
            for (int j = 0; j < V; j += 2) {
                const uint32_t halves[2] = {pairs[j / 2] << 16, pairs[j / 2] & 0xffff0000u};
                memcpy(out + j, halves, sizeof halves);
            }
        } else {
#pragma unroll
            for (int j = 0; j < V; ++j) out[j] = to_acc(v[j]);
        }
    }
};

template <class T> using Vector = Packed<T, kVector<T>>;

template <class T> __device__ __forceinline__ Vector<T> load_vector(const T* p) {
    Vector<T> vector;
    vector.load(p);
    return vector;
}

template <int V, class T> __device__ __forceinline__ void load(const T* p, Acc<T> (&out)[V]) {
    Packed<T, V> packed;
    packed.load(p);
    packed.unpack(out);
}

template <int V, class T> __device__ __forceinline__ void store(T* p, const Acc<T> (&in)[V]) {
    Packed<T, V> packed;
#pragma unroll
    for (int j = 0; j < V; ++j) packed.v[j] = from_acc<T>(in[j]);
    packed.store(p);
}

// A maximum and its argmax: the first NaN, else the first of the largest elements.
template <class F> struct Maximum {
    F value;
    int32_t index;
};

template <class F> __device__ __forceinline__ Maximum<F> larger(Maximum<F> a, Maximum<F> b) {
    const bool nan_a = a.value != a.value, nan_b = b.value != b.value;
    const bool equal = a.value == b.value || (nan_a && nan_b);
    const bool b_wins = equal ? b.index < a.index : !nan_a && (nan_b || b.value > a.value);
    return b_wins ? b : a;
}

// Merges maxima whose index is the number of tied elements.
template <class F> __device__ __forceinline__ Maximum<F> merge_counts(Maximum<F> a, Maximum<F> b) {
    return a.value == b.value ? Maximum<F>{a.value, a.index + b.index} : larger(a, b);
}

// Returns the sum over the warp in every lane. All lanes add the same pairs, so they have the same bits.
template <class F> __device__ __forceinline__ F warp_sum(F v) {
    for (int step = kWarp / 2; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

template <class F> __device__ __forceinline__ F merge(F a, F b) { return a + b; }
template <class F> __device__ __forceinline__ F from_lane(F v, int step) { return __shfl_xor_sync(~0u, v, step); }

// Merges kBatch rows over a group of ``lanes`` lanes. Lane i returns row i % kBatch. The first two steps halve the rows
// of a lane, which takes half as many exchanges as merging every row in every lane.
template <class A> __device__ __forceinline__ A merge_lanes(const A (&rows)[kBatch], int lanes) {
    static_assert(kBatch == 4);
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    const A first = merge(odd ? rows[1] : rows[0], from_lane(odd ? rows[0] : rows[1], 1));
    const A second = merge(odd ? rows[3] : rows[2], from_lane(odd ? rows[2] : rows[3], 1));
    A mine = merge(upper ? second : first, from_lane(upper ? first : second, 2));
#pragma unroll
    for (int step = kBatch; step < kWarp; step *= 2) {
        const A other = from_lane(mine, step);
        if (step < lanes) mine = merge(mine, other);
    }
    return mine;
}

// Waits until the previous launch has ended and its writes can be read. In a launch that may start early, every thread
// calls this before it accesses global memory.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(CBAM_EMULATION) || __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}

template <class F> __device__ __forceinline__ F sigmoid(F v) { return F(1) / (F(1) + exp(-v)); }

template <class F> __device__ __forceinline__ F gate_of(bool hard, F v) { return hard ? hard_sigmoid(v) : sigmoid(v); }

template <class F> __device__ __forceinline__ F relu(F v) { return v < F(0) ? F(0) : v; }

}  // namespace cbam::cuda
