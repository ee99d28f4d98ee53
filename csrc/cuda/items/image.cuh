// Where the arrays of one image lie in saved, index and partial; F is the type of the sums.
#pragma once

#include "../../problem.h"
#include "../device.cuh"

namespace cbam::cuda {

template <class F> struct Image {
    const Problem& p;
    int64_t n;

    __device__ F* saved(int64_t offset) const { return (F*)p.saved + n * p.saved_size() + offset; }
    __device__ F* mean_hw() const { return saved(0); }
    __device__ F* max_hw() const { return saved(p.C); }
    __device__ F* g() const { return saved(2 * p.C); }
    __device__ F* hidden_mean() const { return saved(3 * p.C); }
    __device__ F* hidden_max() const { return saved(3 * p.C + p.R); }
    __device__ F* mean_c() const { return saved(3 * p.C + 2 * p.R); }
    __device__ F* max_c() const { return saved(3 * p.C + 2 * p.R + p.HW()); }
    __device__ F* s() const { return saved(3 * p.C + 2 * p.R + 2 * p.HW()); }
    // The spatial gate, as it was given or as it was saved.
    __device__ const F* spatial_gate() const { return p.s ? (const F*)p.s + n * p.HW() : s(); }

    __device__ int32_t* argmax_hw() const { return p.index + n * (p.C + p.HW()); }
    __device__ int32_t* argmax_c() const { return argmax_hw() + p.C; }

    __device__ F* partial(int64_t offset) const { return (F*)p.partial + n * p.partial_size() + offset; }
    __device__ F* dlogit() const { return partial(0); }
    __device__ F* hidden() const { return partial(p.C); }
    __device__ F* dhidden_mean() const { return partial(p.C + p.R); }
    __device__ F* dhidden_max() const { return partial(p.C + 2 * p.R); }
    __device__ F* dconv() const { return partial(p.C + 3 * p.R); }  // dws and dbs

    // This image in a tensor of x's shape; null if there is none.
    template <class T> __device__ T* of(T* tensor) const { return tensor ? tensor + n * p.C * p.HW() : nullptr; }
};

}  // namespace cbam::cuda
