// The channel gate of an image whose blocks know the pooled values of a part of the channels each, forward and
// backward. Of w1 and w2 a block reads what belongs to its channels, so that an image reads each once. Weights come
// from L2, and few warps wait for them: each thread has several under way.
#pragma once

#include "reduce.cuh"

namespace cbam::cuda {

// g = sigmoid(w2 (relu(w1 mean + b1) + relu(w1 max + b1)) + 2 b2) of the part's channels: finish(channel, g). Mean and
// maximum are in shared memory, hidden is room for 3 R numbers there; the two hidden vectors go to saved.
template <class B, class Finish>
__device__ __forceinline__ void channel_gate(const Problem& p, const OnChip& o, const B& blocks, Part channels,
                                             const float* mean, const float* most, float* hidden, float* saved,
                                             Finish finish) {
    const int C = int(p.C), R = int(p.R), warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const float *w1 = static_cast<const float*>(p.w1), *b1 = static_cast<const float*>(p.b1);
    const float *w2 = static_cast<const float*>(p.w2), *b2 = static_cast<const float*>(p.b2);
    for (int r0 = warp * kBatch; r0 < R; r0 += kOnChipThreads / kWarp * kBatch) {
        float from_mean[kBatch] = {}, from_most[kBatch] = {};
#pragma unroll 2
        for (int c = channels.first + lane; c < channels.last; c += kWarp) {
            const float a = mean[c], m = most[c];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const float w = r0 + i < R ? w1[(r0 + i) * C + c] : 0;
                from_mean[i] += w * a;
                from_most[i] += w * m;
            }
        }
        const float of_mean = merge_lanes(from_mean, kWarp), of_most = merge_lanes(from_most, kWarp);
        if (lane < kBatch && r0 + lane < R) hidden[r0 + lane] = of_mean, hidden[R + r0 + lane] = of_most;
    }
    blocks.sync();
    float* total = hidden + 2 * R;
    for (int r = int(threadIdx.x); r < R; r += kOnChipThreads) {
        const float bias = b1 ? b1[r] : 0;
        const float from_mean =
            relu(join_blocks<float>(blocks, [&](int rank) { return *blocks.of(rank, hidden + r); }) + bias);
        const float from_most =
            relu(join_blocks<float>(blocks, [&](int rank) { return *blocks.of(rank, hidden + R + r); }) + bias);
        total[r] = from_mean + from_most;
        if (blocks.rank() == 0) saved[r] = from_mean, saved[R + r] = from_most;
    }
    __syncthreads();
    const int own = int(threadIdx.x) % o.mlp_lanes, groups = kOnChipThreads / o.mlp_lanes;
    for (int first = channels.first; first < channels.last; first += groups * kBatch) {
        const int c = first + int(threadIdx.x) / o.mlp_lanes;  // and every groups-th from there
        float logit[kBatch] = {};
#pragma unroll 4
        for (int r = own; r < R; r += o.mlp_lanes) {
            const float h = total[r];
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (c + i * groups < channels.last) logit[i] += w2[(c + i * groups) * R + r] * h;
        }
        const float mine = merge_lanes(logit, o.mlp_lanes);
        const int of_mine = c + own * groups;
        if (own < kBatch && of_mine < channels.last) finish(of_mine, sigmoid(mine + (b2 ? 2 * b2[of_mine] : 0)));
    }
}

// From dlogit, the gradient before the sigmoid, of the part's channels: finish(channel, gradient of every element,
// gradient of the maximum). dlogit is in shared memory, hidden is room for (mlp_groups + 2) R numbers there; partial
// takes what the parameters' gradients are made of.
template <class B, class Finish>
__device__ __forceinline__ void channel_gate_backward(const Problem& p, const OnChip& o, const B& blocks, int64_t n,
                                                      Part channels, const float* dlogit, float* hidden,
                                                      Finish finish) {
    const int C = int(p.C), R = int(p.R), HW = int(p.HW()), count = channels.last - channels.first;
    const float* saved_hidden = static_cast<const float*>(p.saved) + n * p.saved_size() + 3 * C;
    float* partial = static_cast<float*>(p.partial) + n * p.partial_size();
    const float *w1 = static_cast<const float*>(p.w1), *w2 = static_cast<const float*>(p.w2);
    const float *dl = dlogit + channels.first, *weights = w2 + channels.first * R;
    reduce_columns<float, 1>(
        R, o.mlp_groups,
        [&](float (&a)[1], int group, int r) {
#pragma unroll 8
            for (int row = group; row < count; row += o.mlp_groups) a[0] += weights[row * R + r] * dl[row];
        },
        [&](int i, const auto& a) { hidden[i] = a[0]; }, [&](int i) { return hidden[i]; });
    blocks.sync();
    float* dhidden = hidden + o.mlp_groups * R;
    for (int r = int(threadIdx.x); r < R; r += kOnChipThreads) {
        const float sum = join_blocks<float>(blocks, [&](int rank) { return *blocks.of(rank, hidden + r); });
        const float from_mean = saved_hidden[r], from_most = saved_hidden[R + r];
        dhidden[r] = from_mean <= 0 ? 0 : sum;
        dhidden[R + r] = from_most <= 0 ? 0 : sum;
        if (blocks.rank() > 0) continue;
        partial[C + r] = from_mean + from_most;
        partial[C + R + r] = dhidden[r];
        partial[C + 2 * R + r] = dhidden[R + r];
    }
    __syncthreads();
    for (int c = channels.first + int(threadIdx.x); c < channels.last; c += kOnChipThreads) {
        partial[c] = dlogit[c];
        float dmean = 0, dmost = 0;
#pragma unroll 8
        for (int r = 0; r < R; ++r) {
            const float w = w1[r * C + c];
            dmean += w * dhidden[r];
            dmost += w * dhidden[R + r];
        }
        finish(c, dmean / HW, dmost);
    }
}

}  // namespace cbam::cuda
