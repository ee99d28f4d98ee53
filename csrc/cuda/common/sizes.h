// Constants that host and device code share. They need no CUDA header, so any C++ compiler can read them.
#pragma once

#include "../../problem.h"

namespace cbam::cuda {

constexpr int kWarp = 32;
constexpr int kBatch = 4;  // rows of a thread at a time; their loads are in flight together

constexpr int kImages = kBatch;  // of an item of the MLP, at most
constexpr int kOneBlock = 512;   // most channels for which one block computes the MLP of an image

// Returns how many lanes take n values together: a power of two from kBatch, which merge_lanes needs, to kWarp.
CBAM_ANYWHERE inline int lanes_for(long long n) {
    int lanes = kBatch;
    while (lanes < kWarp && lanes < n) lanes *= 2;
    return lanes;
}

}  // namespace cbam::cuda
