// What both directions of the channel gate's MLP share. An item has up to kImages images, so that a weight, read once
// from L2, serves as many. Where the channels are few, an item goes through both layers of one image; else a layer is
// divided between items, by its outputs. Sums go in an order that depends on C and R alone, so an image has the same
// bits in every batch.
#pragma once

#include "image.cuh"
#include "work.h"

namespace cbam::cuda {

constexpr int kWarps = kThreads / kWarp;
constexpr int kChunk = 512;  // inputs that are in shared memory at a time, for each image

// The images of an item.
struct Images {
    int64_t first;
    int count;

    __device__ Images(int64_t group, int images, int64_t N)
        : first(group * images), count(int(min(int64_t(images), N - first))) {}
};

// Puts of(image, i) for first <= i < last at to[n kChunk + i - first], n counting the item's images; zeros for images
// beyond. The values of all images are under way together.
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
