// Gradients of the parameters. No other item needs them.
//
// ws_gradients: dws[m, a, b] = sum over pixels of dz times map m at offset (a, b), and dbs = sum of dz, of one
// image. An item has one column b of one map, or dbs. Threads split the columns and rows of the map.
// parameter_gradients: sums over the images. Lanes have neighbouring columns, warps every kWarps-th image.
//
// Reads: ws_gradients dz, mean_c, max_c; parameter_gradients the pools and partial.
// Writes: ws_gradients dws and dbs in partial; parameter_gradients dw1, db1, dw2, db2, dws, dbs.
// Shared memory: kParameters values.
#pragma once

#include "mlp.cuh"

namespace cbam::cuda {

constexpr int kWeightUnits = 4;  // hidden units per item of weight_gradients
constexpr int kWsRows = 8;       // rows of ws at a time
constexpr int kParameters = kThreads;

// ``column`` is b for mean_c, k + b for max_c, 2 k for dbs. A thread goes down a part of a column of the map, and keeps
// in registers the values of dz that the rows of ws meet there.
template <class F>
__device__ __forceinline__ void ws_gradients(const Layout& p, const F* dz, int64_t n, int column, F* of_warps) {
    const int H = p.H, W = p.W, k = p.k;
    const Image<F> image{p, n};
    const bool bias = column == 2 * k;
    const F* const map = column < k ? image.mean_c() : image.max_c();
    const int b = column % k, right = b - k / 2;  // column of the map minus column of dz
    const int width = min(W, kThreads), parts = min(kThreads / width, (H + 3) / 4);
    const int part = threadIdx.x / width, first_w = part < parts ? threadIdx.x % width : W;
    const int top = int64_t(H) * part / parts, bottom = int64_t(H) * (part + 1) / parts;
    for (int a0 = 0; a0 < (bias ? 1 : k); a0 += kWsRows) {
        F sums[kWsRows] = {};
        for (int i = threadIdx.x; bias && dz && i < H * W; i += kThreads) sums[0] += dz[i];
        for (int w = bias ? W : first_w; w < W; w += width) {
            // Row y of the map meets row y + k / 2 - a of dz.
            const auto of_dz = [&](int y) { return dz && y >= 0 && y < H ? dz[y * W + w] : F(0); };
            const bool inside = w + right >= 0 && w + right < W;
            F d[kWsRows];
#pragma unroll
            for (int j = 1; j < kWsRows; ++j) d[j - 1] = of_dz(top + k / 2 - a0 - j);
#pragma unroll 4
            for (int y = top; y < bottom; ++y) {
#pragma unroll
                for (int j = kWsRows - 1; j > 0; --j) d[j] = d[j - 1];
                d[0] = of_dz(y + k / 2 - a0);
                const F v = inside ? map[y * W + w + right] : F(0);
#pragma unroll
                for (int j = 0; j < kWsRows; ++j) sums[j] += d[j] * v;
            }
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < kWsRows; ++j) {
            const F sum = warp_sum(sums[j]);
            if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp * kWsRows + j] = sum;
        }
        __syncthreads();
        const int j = threadIdx.x;
        if (j < kWsRows && a0 + j < (bias ? 1 : k)) {
            F sum = 0;
            for (int warp = 0; warp < kWarps; ++warp) sum += of_warps[warp * kWsRows + j];
            image.dconv()[bias ? 2 * k * k : (column / k * k + a0 + j) * k + b] = sum;
        }
    }
}

// Returns the sum over the warps of each lane's value, in the order of the warps.
template <class F> __device__ __forceinline__ F sum_of_warps(F mine, F* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = mine;
    __syncthreads();
    F total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp * kWarp + threadIdx.x % kWarp];
    return total;
}

// dw1 = sum over images and terms of dhidden pool^T; dw2 = sum over images and gates of dlogit hidden_sum^T.
template <class F> __device__ __forceinline__ void weight_gradients(const Layout& p, int item, F* scratch) {
    const int C = p.C, R = p.R, blocks = (C + kWarp - 1) / kWarp, warp = threadIdx.x / kWarp;
    const int c = item % blocks * kWarp + threadIdx.x % kWarp, r = item / blocks * kWeightUnits;
    F first[kWeightUnits] = {}, second[kWeightUnits] = {};
    for (int64_t n = warp; n < p.N && c < C; n += kWarps) {
        const Image<F> image{p, n};
        const auto add = [&](F(&sums)[kWeightUnits], F of_channel, const F* of_units) {
#pragma unroll
            for (int i = 0; i < kWeightUnits; ++i)
                if (r + i < R) sums[i] += of_channel * of_units[r + i];
        };
        for (int term = 0; p.w1 && term < p.switches.terms(); ++term)
            add(first, image.pool(term)[c], image.dhidden(term));
        for (int gate = 0; gate < p.switches.gates(); ++gate)
            add(second, image.dlogit(gate)[c], image.hidden_sum(gate));
    }
#pragma unroll
    for (int i = 0; i < kWeightUnits; ++i) {
        const F w1 = sum_of_warps(first[i], scratch), w2 = sum_of_warps(second[i], scratch);
        if (warp > 0 || c >= C || r + i >= R) continue;
        if (p.dw1) ((F*)p.dw1)[int64_t(r + i) * C + c] = w1;
        ((F*)p.dw2)[int64_t(c) * R + r + i] = w2;
    }
}

// out[i] = factor times the sum over images of partial[at + i] + partial[other + i]. An item has kWarp of the i.
template <class F> __device__ __forceinline__ void column_sums(const Layout& p, int item, int64_t at, int64_t other,
                                                               F factor, int length, void* out, F* scratch) {
    const int i = item * kWarp + threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    F total = 0;
    for (int64_t n = warp; n < p.N && i < length; n += kWarps) {
        const Image<F> image{p, n};
        total += image.partial(at)[i];
        if (other) total += image.partial(other)[i];
    }
    total = sum_of_warps(total, scratch);
    if (warp == 0 && i < length) static_cast<F*>(out)[out == p.dws ? p.tap(i) : i] = factor * total;
}

// Number of items for each gradient.
struct ParameterItems {
    int weights, b1, b2, ws, bs;

    CBAM_ANYWHERE explicit ParameterItems(const Problem& p) {
        const auto columns = [](const void* out, int64_t n) { return out ? int((n + kWarp - 1) / kWarp) : 0; };
        weights = columns(p.dw2, p.C) * int((p.R + kWeightUnits - 1) / kWeightUnits);
        b1 = columns(p.db1, p.R), b2 = columns(p.db2, p.C);
        ws = columns(p.dws, 2 * p.k * p.k), bs = columns(p.dbs, 1);
    }
    CBAM_ANYWHERE int count() const { return weights + b1 + b2 + ws + bs; }
};

template <class F> __device__ __forceinline__ void parameter_gradients(const Layout& p, int item, F* scratch) {
    const ParameterItems items(p);
    const int64_t C = p.C, R = p.R, kk = p.k * p.k, dhidden = p.dhidden_layer, conv = p.dconv;
    const int terms = p.switches.terms(), gates = p.switches.gates();
    if (item < items.weights) return weight_gradients<F>(p, item, scratch);
    item -= items.weights;
    if (item < items.b1) return column_sums<F>(p, item, dhidden, terms == 2 ? dhidden + R : 0, 1, R, p.db1, scratch);
    item -= items.b1;
    if (item < items.b2) return column_sums<F>(p, item, 0, gates == 2 ? C : 0, F(terms / gates), C, p.db2, scratch);
    item -= items.b2;
    if (item < items.ws) return column_sums<F>(p, item, conv, 0, 1, 2 * kk, p.dws, scratch);
    column_sums<F>(p, item - items.ws, conv + 2 * kk, 0, 1, 1, p.dbs, scratch);
}

}  // namespace cbam::cuda
