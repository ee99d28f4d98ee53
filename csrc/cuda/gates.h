// The kernels between the passes over x, which know of no type but that of the sums, F.
#pragma once

#include "group.h"
#include "staged_pool.cuh"

namespace cbam::cuda {

// What the channel pool left: (count, C) for each image.
template <class F> struct PoolParts {
    const F *total, *max;
    const int32_t* argmax;
    int count;

    __device__ __forceinline__ PoolSum<F> of(int64_t image, int c, int C) const {
        const int64_t first = image * count * C + c;
        PoolSum<F> sum = {total[first], {max[first], argmax[first]}};
        for (int part = 1; part < count; ++part) {
            const int64_t at = first + int64_t(part) * C;
            sum = merge(sum, PoolSum<F>{total[at], {max[at], argmax[at]}});
        }
        return sum;
    }
};

// From what the channel pool left: all that saved and index have of the channel gate.
template <class F> void channel_gate_forward(Launcher&, const Group<F>&, const PoolParts<F>&);

// From dg, (images, C), and what comes to g dg through the maps, (images, parts, C): dpools, (images, 2, C), the
// gradients of each element and of the maximum; and what partial has of the channel gate.
template <class F>
void channel_gate_backward(Launcher&, const Group<F>&, const F* dg, const F* through_maps, int parts, F* dpools);

// From the maps in saved: s there; without y, before its sigmoid.
template <class F> void spatial_gate_forward(Launcher&, const Group<F>&);

// From dz, (images, HW): dmaps, (images, 2, HW), the gradients of g x from the mean and at the maximum; and what
// partial has of the spatial gate.
template <class F> void spatial_gate_backward(Launcher&, const Group<F>&, const F* dz, F* dmaps);

}  // namespace cbam::cuda
