// The small kernels of the staged schedule that belong to no gate: joining what the tiles of products left, and what
// stands for an absent gate.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// Sums of a tile each, (count, C) or (count, HW) for each image.
template <class F> struct GateParts {
    const F* data;
    int count;

    __device__ F sum(int64_t image, int i, int length) const {
        F sum = 0;
        for (int part = 0; part < count; ++part) sum += data[(image * count + part) * length + i];
        return sum;
    }
};

// The gradients of the two gates, (images, C) and (images, HW); null is not asked for. With ``spatial_gate`` the second
// is taken on through its sigmoid.
template <class F> __global__ void __launch_bounds__(kThreads)
    join(GateParts<F> channels, GateParts<F> pixels, Rows<const F> spatial_gate, F* dg, F* ds, int C, int HW) {
    const unsigned channel_blocks = (C + kThreads - 1) / kThreads;
    const unsigned blocks = channel_blocks + (HW + kThreads - 1) / kThreads, block = blockIdx.x % blocks;
    const int64_t image = blockIdx.x / blocks;
    if (block < channel_blocks) {
        const int c = block * kThreads + threadIdx.x;
        if (dg && c < C) dg[image * C + c] = channels.sum(image, c, C);
    } else {
        const int p = (block - channel_blocks) * kThreads + threadIdx.x;
        if (!ds || p >= HW) return;
        const F sum = pixels.sum(image, p, HW);
        const F s = spatial_gate.data ? spatial_gate.of(image)[p] : F(0);
        ds[image * HW + p] = spatial_gate.data ? sum * (s * (1 - s)) : sum;
    }
}

// The gate itself is 1, all else 0.
template <class F> __global__ void __launch_bounds__(kThreads)
    absent_gate(Rows<F> mean, Rows<F> max, Rows<F> gate, Rows<int32_t> argmax, int length) {
    const unsigned blocks = (length + kThreads - 1) / kThreads;
    const int64_t image = blockIdx.x / blocks;
    const int i = blockIdx.x % blocks * kThreads + threadIdx.x;
    if (i >= length) return;
    mean.of(image)[i] = max.of(image)[i] = 0;
    gate.of(image)[i] = 1;
    argmax.of(image)[i] = 0;
}

}  // namespace cbam::cuda
