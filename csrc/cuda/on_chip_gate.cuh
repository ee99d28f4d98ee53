// The channel gate of an image whose blocks know the pooled values of a part of the channels each, forward and
// backward. Of w1 and w2 a block reads what belongs to its channels, so that an image reads each once.
#pragma once

#include "on_chip.cuh"

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
    for (int r = warp; r < R; r += kOnChipThreads / kWarp) {
        float from_mean = 0, from_most = 0;
        for (int c = channels.first + lane; c < channels.last; c += kWarp) {
            const float w = w1[r * C + c];
            from_mean += w * mean[c];
            from_most += w * most[c];
        }
        from_mean = warp_sum(from_mean);
        from_most = warp_sum(from_most);
        if (lane == 0) hidden[r] = from_mean, hidden[R + r] = from_most;
    }
    blocks.sync();
    float* total = hidden + 2 * R;
    for (int r = int(threadIdx.x); r < R; r += kOnChipThreads) {
        float from_mean = 0, from_most = 0;
        for (int rank = 0; rank < blocks.count(); ++rank) {
            const float* part = blocks.of(rank, hidden);
            from_mean += part[r];
            from_most += part[R + r];
        }
        const float bias = b1 ? b1[r] : 0;
        from_mean = relu(from_mean + bias);
        from_most = relu(from_most + bias);
        total[r] = from_mean + from_most;
        if (blocks.rank() == 0) saved[r] = from_mean, saved[R + r] = from_most;
    }
    __syncthreads();
    reduce_rows<Sum, 1>(
        channels.last - channels.first, R, o.mlp_lanes,
        [&](Sum& a, int row, int r) { a.value += w2[(channels.first + row) * R + r] * total[r]; },
        [&](int row, const Sum& a) {
            const int c = channels.first + row;
            finish(c, sigmoid(a.value + (b2 ? 2 * b2[c] : 0)));
        });
}

// From dlogit, the gradient before the sigmoid, of the part's channels: finish(channel, gradient of every element,
// gradient of the maximum). dlogit is in shared memory, hidden is room for (mlp_groups + 2) R numbers there; partial
// takes what the parameters' gradients are made of.
template <class B, class Finish>
__device__ __forceinline__ void channel_gate_backward(const Problem& p, const OnChip& o, const B& blocks, int64_t n,
                                                      Part channels, const float* dlogit, float* hidden,
                                                      Finish finish) {
    const int C = int(p.C), R = int(p.R), HW = int(p.HW());
    const float* saved_hidden = static_cast<const float*>(p.saved) + n * p.saved_size() + 3 * C;
    float* partial = static_cast<float*>(p.partial) + n * p.partial_size();
    const float *w1 = static_cast<const float*>(p.w1), *w2 = static_cast<const float*>(p.w2);
    const float *dl = dlogit + channels.first, *weights = w2 + channels.first * R;
    reduce_columns<Sum, 1>(
        channels.last - channels.first, R, o.mlp_groups,
        [&](Sum(&a)[1], int row, int r) { a[0].value += weights[row * R + r] * dl[row]; },
        [&](int i, const Sum& a) { hidden[i] = a.value; });
    blocks.sync();
    float* dhidden = hidden + o.mlp_groups * R;
    join_columns<Sum>(
        blocks, {0, R}, R, o.mlp_groups, [&](int rank, int i) { return Sum{*blocks.of(rank, hidden + i)}; },
        [&](int r, const Sum& a) {
            const float from_mean = saved_hidden[r], from_most = saved_hidden[R + r];
            dhidden[r] = from_mean <= 0 ? 0 : a.value;
            dhidden[R + r] = from_most <= 0 ? 0 : a.value;
            if (blocks.rank() == 0) {
                partial[C + r] = from_mean + from_most;
                partial[C + R + r] = dhidden[r];
                partial[C + 2 * R + r] = dhidden[R + r];
            }
        });
    __syncthreads();
    for (int c = channels.first + int(threadIdx.x); c < channels.last; c += kOnChipThreads) {
        partial[c] = dlogit[c];
        float dmean = 0, dmost = 0;
#pragma unroll 4
        for (int r = 0; r < R; ++r) {
            const float w = w1[r * C + c];
            dmean += w * dhidden[r];
            dmost += w * dhidden[R + r];
        }
        finish(c, dmean / HW, dmost);
    }
}

}  // namespace cbam::cuda
