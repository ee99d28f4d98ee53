// Gradients of the parameters: sums over the images of what each left in partial and saved. Warps take every kWarps-th
// image, lanes neighbouring columns; a block then adds up its warps. It reads N (3 C + 3 R) numbers a few times over,
// and writes the gradients once.
#include "parameters.h"

#include "group.h"

namespace cbam::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int kHidden = 4;  // hidden units of a block of weight_gradients

// The sum over the warps of what each has; to be used by the first warp.
template <class F> __device__ F sum_of_warps(F mine, F* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = mine;
    __syncthreads();
    F total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp * kWarp + threadIdx.x % kWarp];
    return total;
}

// dw1 = sum of dhidden_mean mean^T + dhidden_max max^T; dw2 = sum of dlogit hidden^T. A block has kWarp channels.
template <class F> __global__ void __launch_bounds__(kThreads)
    weight_gradients(Rows<const F> mean, Rows<const F> max, Rows<const F> dlogit, Rows<const F> dhidden_mean,
                     Rows<const F> dhidden_max, Rows<const F> hidden, F* dw1, F* dw2, int64_t N, int C, int R) {
    CBAM_SHARED(shared);
    F* const scratch = reinterpret_cast<F*>(shared);
    const unsigned blocks = (C + kWarp - 1) / kWarp;
    const int c = blockIdx.x % blocks * kWarp + threadIdx.x % kWarp, r = blockIdx.x / blocks * kHidden;
    const int warp = threadIdx.x / kWarp;
    F first[kHidden] = {}, second[kHidden] = {};
    for (int64_t n = warp; n < N && c < C; n += kWarps) {
        const F a = mean.of(n)[c], m = max.of(n)[c], d = dlogit.of(n)[c];
#pragma unroll
        for (int i = 0; i < kHidden; ++i) {
            if (r + i >= R) break;
            first[i] += dhidden_mean.of(n)[r + i] * a + dhidden_max.of(n)[r + i] * m;
            second[i] += d * hidden.of(n)[r + i];
        }
    }
#pragma unroll
    for (int i = 0; i < kHidden; ++i) {
        const F w1 = sum_of_warps(first[i], scratch), w2 = sum_of_warps(second[i], scratch);
        if (warp > 0 || c >= C || r + i >= R) continue;
        dw1[int64_t(r + i) * C + c] = w1;
        dw2[int64_t(c) * R + r + i] = w2;
    }
}

// Sums down the columns: out[i] = factor times the sum of a[i], and of b[i] where there is one.
template <class F> __global__ void __launch_bounds__(kThreads)
    column_sums(Rows<const F> a, Rows<const F> b, F* out, F factor, int64_t N, int length) {
    CBAM_SHARED(shared);
    const int i = blockIdx.x * kWarp + threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    F total = 0;
    for (int64_t n = warp; n < N && i < length; n += kWarps) {
        total += a.of(n)[i];
        if (b.data) total += b.of(n)[i];
    }
    total = sum_of_warps(total, reinterpret_cast<F*>(shared));
    if (warp == 0 && i < length) out[i] = factor * total;
}

namespace {

template <class F> void gradients(const Problem& p, Launcher& launch) {
    const Group<F> all{p, 0, p.N};
    const int C = p.C, R = p.R, kk = p.k * p.k;
    constexpr size_t kScratch = kThreads * sizeof(F);
    auto sums = [&](void* out, int length, Rows<F> a, Rows<F> b, int factor) {
        if (out)
            launch(column_sums<F>, ceil_div(length, kWarp), kScratch, read(a), read(b), (F*)out, F(factor), p.N,
                   length);
    };
    if (p.dw1)
        launch(weight_gradients<F>, ceil_div(C, kWarp) * ceil_div(R, kHidden), kScratch, read(all.mean_hw()),
               read(all.max_hw()), read(all.dlogit()), read(all.dhidden_mean()), read(all.dhidden_max()),
               read(all.hidden()), (F*)p.dw1, (F*)p.dw2, p.N, C, R);
    sums(p.db1, R, all.dhidden_mean(), all.dhidden_max(), 1);
    sums(p.db2, C, all.dlogit(), {}, 2);
    sums(p.dws, 2 * kk, all.dconv(), {}, 1);
    sums(p.dbs, 1, all.partial(p.partial_size() - 1), {}, 1);
}

}  // namespace

cudaError_t parameter_gradients(const Problem& p, cudaStream_t stream) {
    Launcher launch{stream};
    if (p.dtype == Dtype::f64) gradients<double>(p, launch);
    else gradients<float>(p, launch);
    return launch.status;
}

}  // namespace cbam::cuda
