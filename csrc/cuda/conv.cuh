// The k x k convolution of the spatial gate over the two maps, and its backward. Where k is known at compile time, K, a
// block has kSide x kSide outputs, a thread kStrip of them below each other, and what their windows cover is in shared
// memory, zeros beyond the map: a value that is read there serves a whole column of outputs, a weight kStrip of them.
// For other k, K = 0, a thread reads its windows from memory, of which L1 has most.
#pragma once

#include "gates.h"

namespace cbam::cuda {

constexpr int kSide = 32;
constexpr int kStrip = kSide * kSide / kThreads;

// The squares of a map.
__host__ __device__ inline int64_t squares(int H, int W) {
    return int64_t((H + kSide - 1) / kSide) * ((W + kSide - 1) / kSide);
}

// Sums over windows of maps, for a block that has one of the squares.
template <int K, class F> struct Square {
    static constexpr int kPitch = kSide + K - 1;
    // What lies in shared memory: of each map, and both maps' weights.
    static constexpr int kTile = K ? kPitch * kPitch : 0, kWeights = 2 * K * K;

    int H, W, k, h, w;  // h, w: this thread's first output

    __device__ Square(unsigned square, int H, int W, int k) : H(H), W(W), k(K ? K : k) {
        const int across = (W + kSide - 1) / kSide;
        h = square / across * kSide + threadIdx.x / kSide * kStrip;
        w = square % across * kSide + threadIdx.x % kSide;
    }
    __device__ F at(const F* map, int y, int x) const {
        return y >= 0 && y < H && x >= 0 && x < W ? map[int64_t(y) * W + x] : F(0);
    }
    __device__ __forceinline__ void load(const F* map, F* tile) const {
        if constexpr (K > 0) {
            const int top = h - int(threadIdx.x) / kSide * kStrip - K / 2, left = w - int(threadIdx.x) % kSide - K / 2;
#pragma unroll
            for (int first = 0; first < kTile; first += kThreads) {
                const int i = first + threadIdx.x;
                if (i < kTile) tile[i] = at(map, top + i / kPitch, left + i % kPitch);
            }
        }
    }
    // Where the weights are read.
    __device__ __forceinline__ const F* load_weights(const F* ws, F* shared) const {
        for (int i = threadIdx.x; i < kWeights; i += kThreads) shared[i] = ws[i];
        return K ? shared : ws;
    }
    // visit(output of the strip, offset in its window, what the map has there).
    template <class Visit> __device__ __forceinline__ void window(const F* map, const F* tile, Visit visit) const {
        if constexpr (K > 0) {
            tile += threadIdx.x / kSide * kStrip * kPitch + threadIdx.x % kSide;
#pragma unroll
            for (int b = 0; b < K; ++b) {
#pragma unroll
                for (int row = 0; row < K + kStrip - 1; ++row) {
                    const F v = tile[row * kPitch + b];
#pragma unroll
                    for (int i = 0; i < kStrip; ++i)
                        if (row >= i && row - i < K) visit(i, (row - i) * K + b, v);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < kStrip; ++i)
                for (int tap = 0; tap < k * k; ++tap)
                    visit(i, tap, at(map, h + i + tap / k - k / 2, w + tap % k - k / 2));
        }
    }
    // put(output of the strip, where it lies in the map) for those inside.
    template <class Put> __device__ __forceinline__ void each_output(Put put) const {
#pragma unroll
        for (int i = 0; i < kStrip; ++i)
            if (h + i < H && w < W) put(i, int64_t(h + i) * W + w);
    }
};

// s = conv([mean_c; max_c]) + bs, with or without its sigmoid.
template <int K, class F> __global__ void __launch_bounds__(kThreads, 4)
    spatial_gate(Rows<const F> mean, Rows<const F> max, const F* ws, const F* bs, Rows<F> s, int H, int W, int k,
                 bool with_sigmoid) {
    CBAM_SHARED(shared);
    F* const of_mean = reinterpret_cast<F*>(shared);
    F* const of_max = of_mean + Square<K, F>::kTile;
    const unsigned blocks = squares(H, W);
    const int64_t image = blockIdx.x / blocks;
    const Square<K, F> square(blockIdx.x % blocks, H, W, k);
    square.load(mean.of(image), of_mean);
    square.load(max.of(image), of_max);
    const F* const weights = square.load_weights(ws, of_max + Square<K, F>::kTile);
    const int kk = square.k * square.k;
    __syncthreads();
    F z[kStrip] = {};
    square.window(mean.of(image), of_mean, [&](int i, int tap, F v) { z[i] += v * weights[tap]; });
    square.window(max.of(image), of_max, [&](int i, int tap, F v) { z[i] += v * weights[kk + tap]; });
    const F bias = bs ? *bs : F(0);
    square.each_output([&](int i, int64_t at) { s.of(image)[at] = with_sigmoid ? sigmoid(z[i] + bias) : z[i] + bias; });
}

// From dz, (images, HW): the gradients of g x through the maps, (images, 2, HW), that through the mean over C. It is
// the transposed convolution: the same windows, with the weights turned by half a circle.
template <int K, class F> __global__ void __launch_bounds__(kThreads)
    map_gradients(const F* dz, const F* ws, F* dmaps, int H, int W, int k, F C) {
    CBAM_SHARED(shared);
    F* const tile = reinterpret_cast<F*>(shared);
    const unsigned blocks = squares(H, W);
    const int64_t image = blockIdx.x / blocks, HW = int64_t(H) * W;
    const Square<K, F> square(blockIdx.x % blocks, H, W, k);
    dz += image * HW;
    square.load(dz, tile);
    const F* const weights = square.load_weights(ws, tile + Square<K, F>::kTile);
    const int kk = square.k * square.k;
    __syncthreads();
    F dmean[kStrip] = {}, dmax[kStrip] = {};
    square.window(dz, tile, [&](int i, int tap, F v) {
        dmean[i] += v * weights[kk - 1 - tap];
        dmax[i] += v * weights[2 * kk - 1 - tap];
    });
    dmaps += image * 2 * HW;
    square.each_output([&](int i, int64_t at) {
        dmaps[at] = dmean[i] / C;
        dmaps[HW + at] = dmax[i];
    });
}

// dws and dbs of each image, into its row of partial: a block has a column of the kernel for one of the maps, or dbs. A
// thread goes down a part of a column of the map, and keeps the values of dz that the kernel's rows meet there.
template <int K, class F> __global__ void __launch_bounds__(kThreads, 3)
    kernel_gradients(const F* dz, Rows<const F> mean, Rows<const F> max, Rows<F> dconv, int H, int W, int k) {
    constexpr int kRows = K ? K : 8;  // of the kernel at a time
    CBAM_SHARED(shared);
    F* const of_warps = reinterpret_cast<F*>(shared);
    if (K) k = K;
    const unsigned blocks = 2 * k + 1, block = blockIdx.x % blocks;
    const int64_t image = blockIdx.x / blocks;
    dz += image * H * W;
    const bool bias = block + 1 == blocks;
    const F* map = block < unsigned(k) ? mean.of(image) : max.of(image);
    const int b = block % k, right = b - k / 2;  // from the column of dz to that of the map
    const int width = min(W, kThreads), parts = min(kThreads / width, (H + 3) / 4);
    const int part = threadIdx.x / width, first_w = part < parts ? threadIdx.x % width : W;
    const int top = int64_t(H) * part / parts, bottom = int64_t(H) * (part + 1) / parts;
    for (int a0 = 0; a0 < (bias ? 1 : k); a0 += kRows) {
        F sums[kRows] = {};
        for (int i = threadIdx.x; bias && i < H * W; i += kThreads) sums[0] += dz[i];
        for (int w = bias ? W : first_w; w < W; w += width) {
            // Row y of the map meets row y + k / 2 - a of dz.
            const auto of_dz = [&](int y) { return y >= 0 && y < H ? dz[y * W + w] : F(0); };
            const bool inside = w + right >= 0 && w + right < W;
            F d[kRows];
#pragma unroll
            for (int j = 1; j < kRows; ++j) d[j - 1] = of_dz(top + k / 2 - a0 - j);
#pragma unroll 4
            for (int y = top; y < bottom; ++y) {
#pragma unroll
                for (int j = kRows - 1; j > 0; --j) d[j] = d[j - 1];
                d[0] = of_dz(y + k / 2 - a0);
                const F v = inside ? map[y * W + w + right] : F(0);
#pragma unroll
                for (int j = 0; j < kRows; ++j) sums[j] += d[j] * v;
            }
        }
#pragma unroll
        for (int j = 0; j < kRows; ++j) {
            const F sum = warp_sum(sums[j]);
            if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp * kRows + j] = sum;
        }
        __syncthreads();
        const int j = threadIdx.x;
        if (j < kRows && a0 + j < (bias ? 1 : k)) {
            F sum = 0;
            for (int warp = 0; warp < kThreads / kWarp; ++warp) sum += of_warps[warp * kRows + j];
            dconv.of(image)[bias ? 2 * k * k : (block / k * k + a0 + j) * k + b] = sum;
        }
        __syncthreads();
    }
}

}  // namespace cbam::cuda
