// The k x k convolution of the spatial gate over the two maps, and its backward. Where k is known at compile time, K, a
// block has a square of kSide x kSide outputs and keeps what their windows cover in shared memory, zeros beyond the
// map; for other k, K = 0, a thread reads its window from memory, of which L1 has most.
#pragma once

#include "gates.h"

namespace cbam::cuda {

constexpr int kSide = 16;
static_assert(kSide * kSide == kThreads);

// The squares of a map.
__host__ __device__ inline int64_t squares(int H, int W) {
    return int64_t((H + kSide - 1) / kSide) * ((W + kSide - 1) / kSide);
}

// Sums over windows of a map in memory, for a block that has one of its squares.
template <int K, class F> struct Square {
    static constexpr int kPitch = kSide + K - 1;
    // Of each of the maps that are in shared memory together.
    static constexpr size_t kBytes = K ? kPitch * kPitch * sizeof(F) : 0;

    int H, W, k, h, w;  // h, w: this thread's output

    __device__ Square(unsigned square, int H, int W, int k) : H(H), W(W), k(K ? K : k) {
        const int across = (W + kSide - 1) / kSide;
        h = square / across * kSide + threadIdx.x / kSide;
        w = square % across * kSide + threadIdx.x % kSide;
    }
    __device__ bool inside() const { return h < H && w < W; }
    __device__ F at(const F* map, int y, int x) const {
        return y >= 0 && y < H && x >= 0 && x < W ? map[int64_t(y) * W + x] : F(0);
    }
    __device__ __forceinline__ void load(const F* map, F* tile) const {
        if constexpr (K > 0) {
            const int top = h - int(threadIdx.x) / kSide - K / 2, left = w - int(threadIdx.x) % kSide - K / 2;
#pragma unroll
            for (int first = 0; first < kPitch * kPitch; first += kThreads) {
                const int i = first + threadIdx.x;
                if (i < kPitch * kPitch) tile[i] = at(map, top + i / kPitch, left + i % kPitch);
            }
        }
    }
    // visit(offset in the window, what the map has there), row by row.
    template <class Visit> __device__ __forceinline__ void window(const F* map, const F* tile, Visit visit) const {
        if constexpr (K > 0) {
            tile += threadIdx.x / kSide * kPitch + threadIdx.x % kSide;
#pragma unroll
            for (int i = 0; i < K * K; ++i) visit(i, tile[i / K * kPitch + i % K]);
        } else {
            for (int i = 0; i < k * k; ++i) visit(i, at(map, h + i / k - k / 2, w + i % k - k / 2));
        }
    }
};

// s = conv([mean_c; max_c]) + bs, with or without its sigmoid.
template <int K, class F> __global__ void __launch_bounds__(kThreads)
    spatial_gate(Rows<const F> mean, Rows<const F> max, const F* ws, const F* bs, Rows<F> s, int H, int W, int k,
                 bool with_sigmoid) {
    CBAM_SHARED(shared);
    F *const mean_tile = reinterpret_cast<F*>(shared), *const max_tile =
                                                           reinterpret_cast<F*>(shared + Square<K, F>::kBytes);
    const unsigned blocks = squares(H, W);
    const int64_t image = blockIdx.x / blocks;
    const Square<K, F> square(blockIdx.x % blocks, H, W, k);
    square.load(mean.of(image), mean_tile);
    square.load(max.of(image), max_tile);
    __syncthreads();
    if (!square.inside()) return;
    F z = bs ? *bs : F(0);
    square.window(mean.of(image), mean_tile, [&](int i, F v) { z += v * ws[i]; });
    ws += square.k * square.k;
    square.window(max.of(image), max_tile, [&](int i, F v) { z += v * ws[i]; });
    s.of(image)[square.h * W + square.w] = with_sigmoid ? sigmoid(z) : z;
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
    __syncthreads();
    if (!square.inside()) return;
    const int last = square.k * square.k - 1;
    F dmean = 0, dmax = 0;
    square.window(dz, tile, [&](int i, F v) {
        dmean += v * ws[last - i];
        dmax += v * ws[2 * last + 1 - i];
    });
    dmaps += image * 2 * HW + square.h * W + square.w;
    dmaps[0] = dmean / C;
    dmaps[HW] = dmax;
}

// dws and dbs of each image, into its row of partial: a block has a row of the kernel for one of the maps, or dbs. A
// thread goes down a column of the map, or several.
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
    const int down = int(block % k) - k / 2;                      // from the row of dz to that of the map
    const int width = min(W, kThreads), rows = kThreads / width;  // that the block takes at a time
    const int first_h = threadIdx.x / width, first_w = first_h < rows ? threadIdx.x % width : W;
    for (int b = 0; b < (bias ? 1 : k); b += kColumns) {
        F sums[kColumns] = {};
        for (int w = first_w; w < W; w += width) {
            const int from_w = w + b - k / 2;
#pragma unroll 4
            for (int h = first_h; h < H; h += rows) {
                const F d = dz[h * W + w];
                if (bias) {
                    sums[0] += d;
                } else if (h + down >= 0 && h + down < H) {
                    const F* row = map + (h + down) * W;
#pragma unroll
                    for (int j = 0; j < kColumns; ++j)
                        if (from_w + j >= 0 && from_w + j < W) sums[j] += d * row[from_w + j];
                }
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
