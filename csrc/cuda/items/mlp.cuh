// Shared by the forward and backward of the channel gate's MLP. An item has up to kImages images, which share each read
// of a weight from L2. With few channels, an item computes both layers of one image; else the outputs of a layer are
// split among items. The order of the sums depends on C and R only, so an image has the same bits in every batch.
#pragma once

#include "image.cuh"
#include "work.h"

namespace cbam::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 512;  // inputs in shared memory at a time, per image

struct Images {
    int64_t first;
    int count;

    __device__ Images(int64_t group, int images, int64_t N)
        : first(group * images), count(int(min(int64_t(images), N - first))) {}
};

// Writes of(image, i) to to[n kChunk + i - first] for i in [first, last) and the n-th image of the item, zeros for n
// beyond its images. The loads of all images are in flight together.
template <class F, class Of>
__device__ __forceinline__ void fill(F* to, const Images& images, int first, int last, Of of) {
    for (int i = first + threadIdx.x; i < last; i += kThreads) {
        F v[kImages];
#pragma unroll
        for (int n = 0; n < kImages; ++n) v[n] = n < images.count ? of(images.first + n, i) : F(0);
#pragma unroll
        for (int n = 0; n < kImages; ++n) to[n * kChunk + i - first] = v[n];
    }
}

}  // namespace cbam::cuda
