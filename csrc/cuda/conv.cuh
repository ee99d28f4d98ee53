// The k x k convolution of the spatial gate over the two maps, and its backward. The maps are small: what a thread
// reads again comes from the L1 cache. K is k where it is known at compile time, else 0.
#pragma once

#include "gates.h"

namespace cbam::cuda {

constexpr int kStrip = 4;  // outputs of a thread, below each other: they share most of what they read

// out[i] += sum over (a, b) of weight[a][b] map[h + i + a - k / 2][w + b - k / 2], zeros beyond the map; or, with the
// weights turned by half a circle, the transposed convolution.
template <int K, bool turned, class F> __device__ __forceinline__ void convolve(const F* map, const F* weight, int H,
                                                                                int W, int k, int h, int w,
                                                                                F (&out)[kStrip]) {
    if (K) k = K;
    const int pad = k / 2;
    for (int b = 0; b < k; ++b) {
        const int from_w = w + b - pad;
        if (from_w < 0 || from_w >= W) continue;
#pragma unroll(K ? K + kStrip - 1 : 1)
        for (int row = 0; row < k + kStrip - 1; ++row) {
            const int from_h = h + row - pad;
            if (from_h < 0 || from_h >= H) continue;
            const F v = map[int64_t(from_h) * W + from_w];
#pragma unroll
            for (int i = 0; i < kStrip; ++i) {
                const int a = row - i;
                if (a >= 0 && a < k) out[i] += v * weight[turned ? (k - 1 - a) * k + k - 1 - b : a * k + b];
            }
        }
    }
}

// The column and the first row of the strip that is thread i's of a map.
struct Strip {
    int h, w;
    __device__ Strip(unsigned i, int W) : h(i / W * kStrip), w(i % W) {}
};

// Strips of a map.
__host__ __device__ inline int64_t strips(int H, int W) { return int64_t((H + kStrip - 1) / kStrip) * W; }

// s = conv([mean_c; max_c]) + bs, with or without its sigmoid.
template <int K, class F> __global__ void __launch_bounds__(kThreads)
    spatial_gate(Rows<const F> mean, Rows<const F> max, const F* ws, const F* bs, Rows<F> s, int H, int W, int k,
                 bool with_sigmoid) {
    const unsigned blocks = (strips(H, W) + kThreads - 1) / kThreads;
    const int64_t image = blockIdx.x / blocks;
    const Strip strip(blockIdx.x % blocks * kThreads + threadIdx.x, W);
    if (strip.h >= H) return;
    F z[kStrip] = {};
    convolve<K, false>(mean.of(image), ws, H, W, k, strip.h, strip.w, z);
    convolve<K, false>(max.of(image), ws + k * k, H, W, k, strip.h, strip.w, z);
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
        if (strip.h + i >= H) break;
        if (bs) z[i] += *bs;
        s.of(image)[int64_t(strip.h + i) * W + strip.w] = with_sigmoid ? sigmoid(z[i]) : z[i];
    }
}

// From dz, (images, HW): the gradients of g x through the maps, (images, 2, HW), that through the mean over C.
template <int K, class F> __global__ void __launch_bounds__(kThreads)
    map_gradients(const F* dz, const F* ws, F* dmaps, int H, int W, int k, F C) {
    const unsigned blocks = (strips(H, W) + kThreads - 1) / kThreads;
    const int64_t image = blockIdx.x / blocks, HW = int64_t(H) * W;
    const Strip strip(blockIdx.x % blocks * kThreads + threadIdx.x, W);
    if (strip.h >= H) return;
    F dmean[kStrip] = {}, dmax[kStrip] = {};
    convolve<K, true>(dz + image * HW, ws, H, W, k, strip.h, strip.w, dmean);
    convolve<K, true>(dz + image * HW, ws + k * k, H, W, k, strip.h, strip.w, dmax);
    dmaps += image * 2 * HW + int64_t(strip.h) * W + strip.w;
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
        if (strip.h + i >= H) break;
        dmaps[i * W] = dmean[i] / C;
        dmaps[HW + i * W] = dmax[i];
    }
}

// dws and dbs of each image, into its row of partial: a block has a row of the kernel for one of the maps, or dbs.
template <int K, class F> __global__ void __launch_bounds__(kThreads)
    kernel_gradients(const F* dz, Rows<const F> mean, Rows<const F> max, Rows<F> dconv, int H, int W, int k) {
    constexpr int kColumns = K ? K : 8;  // of the kernel at a time
    CBAM_SHARED(shared);
    F* const of_warps = reinterpret_cast<F*>(shared);
    if (K) k = K;
    const unsigned blocks = 2 * k + 1, block = blockIdx.x % blocks;
    const int64_t image = blockIdx.x / blocks;
    dz += image * H * W;
    const bool bias = block + 1 == blocks;
    const F* map = block < unsigned(k) ? mean.of(image) : max.of(image);
    const int a = block % k, pad = k / 2;
    for (int b = 0; b < (bias ? 1 : k); b += kColumns) {
        F sums[kColumns] = {};
        for (unsigned i = threadIdx.x; i < unsigned(H) * W; i += kThreads) {
            const int h = i / W, w = i % W, from_h = h + a - pad;
            const bool in_rows = from_h >= 0 && from_h < H;
            const F d = dz[i];
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                const int from_w = w + b + j - pad;
                if (bias) sums[j] += d;
                else if (in_rows && from_w >= 0 && from_w < W) sums[j] += d * map[int64_t(from_h) * W + from_w];
            }
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const F sum = warp_sum(sums[j]);
            if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp * kColumns + j] = sum;
        }
        __syncthreads();
        const int j = threadIdx.x;
        if (j < kColumns && b + j < (bias ? 1 : k)) {
            F sum = 0;
            for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += of_warps[warp * kColumns + j];
            dconv.of(image)[block * k + b + j] = sum;
        }
        __syncthreads();
    }
}

}  // namespace cbam::cuda
