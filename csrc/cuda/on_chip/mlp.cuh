// The MLP of the channel gate, forward and backward. A block has the pools of its range of channels and reads w1 and w2
// for these only, so an image reads each weight once. Weights come from L2 and few warps hide the latency, so each
// thread has several loads in flight.
#pragma once

#include "reduce.cuh"

namespace cbam::cuda {

// Writes w1 mean and w1 max, summed over the range's channels, to the first 2 R values of hidden.
template <class Block> __device__ __forceinline__ void sum_hidden(const Block& b) {
    const int C = b.C, R = int(b.p.R), warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    const float* w1 = static_cast<const float*>(b.p.w1);
    for (int r0 = warp * kBatch; r0 < R; r0 += kOnChipThreads / kWarp * kBatch) {
        float from_mean[kBatch] = {}, from_max[kBatch] = {};
#pragma unroll 2
        for (int c = b.channels.first + lane; c < b.channels.last; c += kWarp) {
            const float mean = b.channel.sum[c], max = b.channel.max[c];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const float w = r0 + i < R ? w1[(r0 + i) * C + c] : 0;
                from_mean[i] += w * mean;
                from_max[i] += w * max;
            }
        }
        const float of_mean = merge_lanes(from_mean, kWarp), of_max = merge_lanes(from_max, kWarp);
        if (lane < kBatch && r0 + lane < R) b.hidden[r0 + lane] = of_mean, b.hidden[R + r0 + lane] = of_max;
    }
}

// Calls finish(channel, g) for the range's channels: g = sigmoid(w2 (relu(w1 mean + b1) + relu(w1 max + b1)) + 2 b2).
// Writes the two hidden vectors to saved, and their sum to the last R of the 3 R values of hidden.
template <class Block, class Finish> __device__ __forceinline__ void channel_gate(const Block& b, Finish finish) {
    const OnChip& o = b.o;
    const Range channels = b.channels;
    const int R = int(b.p.R);
    const float *b1 = static_cast<const float*>(b.p.b1), *b2 = static_cast<const float*>(b.p.b2);
    const float* w2 = static_cast<const float*>(b.p.w2);
    float *hidden = b.hidden, *saved = b.saved() + 3 * b.C;
    sum_hidden(b);
    b.sync();
    float* total = hidden + 2 * R;
    for (int r = int(threadIdx.x); r < R; r += kOnChipThreads) {
        const float bias = b1 ? b1[r] : 0;
        const float from_mean = relu(join_blocks(b.blocks, Sums{hidden}, r) + bias);
        const float from_max = relu(join_blocks(b.blocks, Sums{hidden}, R + r) + bias);
        total[r] = from_mean + from_max;
        if (b.blocks.rank() == 0) saved[r] = from_mean, saved[R + r] = from_max;
    }
    __syncthreads();
    const int own = int(threadIdx.x) % o.mlp_lanes, groups = kOnChipThreads / o.mlp_lanes;
    for (int first = channels.first; first < channels.last; first += groups * kBatch) {
        const int c = first + int(threadIdx.x) / o.mlp_lanes;  // and every groups-th channel after it
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

// From dlogit, calls finish(channel, gradient of all elements, gradient at the argmax) for the range's channels. Writes
// dlogit, the sum of the hidden vectors and their gradients to partial, for the gradients of w1, b1, w2 and b2. hidden
// has (mlp_groups + 2) R values.
template <class Block, class Finish>
__device__ __forceinline__ void mlp_backward(const Block& b, const float* dlogit, Finish finish) {
    const OnChip& o = b.o;
    const Range channels = b.channels;
    const int C = b.C, R = int(b.p.R), count = channels.last - channels.first;
    const float* saved_hidden = b.saved() + 3 * C;
    float *hidden = b.hidden, *partial = b.partial();
    const float *w1 = static_cast<const float*>(b.p.w1), *w2 = static_cast<const float*>(b.p.w2);
    const float *dl = dlogit + channels.first, *weights = w2 + channels.first * R;
    reduce_columns<float, 1>(R, o.mlp_groups, Sums{hidden}, [&](auto& a, int group, int r) {
#pragma unroll 8
        for (int row = group; row < count; row += o.mlp_groups) a[0] += weights[row * R + r] * dl[row];
    });
    b.sync();
    float* dhidden = hidden + o.mlp_groups * R;
    for (int r = int(threadIdx.x); r < R; r += kOnChipThreads) {
        const float sum = join_blocks(b.blocks, Sums{hidden}, r);
        const float from_mean = saved_hidden[r], from_max = saved_hidden[R + r];
        dhidden[r] = from_mean <= 0 ? 0 : sum;
        dhidden[R + r] = from_max <= 0 ? 0 : sum;
        if (b.blocks.rank() > 0) continue;
        partial[C + r] = from_mean + from_max;
        partial[C + R + r] = dhidden[r];
        partial[C + 2 * R + r] = dhidden[R + r];
    }
    __syncthreads();
    for (int c = channels.first + int(threadIdx.x); c < channels.last; c += kOnChipThreads) {
        partial[c] = dlogit[c];
        float dmean = 0, dmax = 0;
#pragma unroll 8
        for (int r = 0; r < R; ++r) {
            const float w = w1[r * C + c];
            dmean += w * dhidden[r];
            dmax += w * dhidden[R + r];
        }
        finish(c, dmean / b.HW, dmax);
    }
}

}  // namespace cbam::cuda
