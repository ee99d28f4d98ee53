// Numbers that launchers and kernels agree on. No CUDA here, so that any C++ compiler takes it.
#pragma once

#include "../../problem.h"

namespace cbam::cuda {

constexpr int kWarp = 32;
constexpr int kBatch = 4;  // rows that a thread takes at a time, so that as many of its accesses are under way

constexpr int kImages = kBatch;  // of an item of the MLP, at most
constexpr int kOneBlock = 512;   // channels up to which one block goes through the MLP of an image

// The fewest neighbours of a warp that take n at once, if they are enough to merge kBatch results.
CBAM_ANYWHERE inline int lanes_for(long long n) {
    int lanes = kBatch;
    while (lanes < kWarp && lanes < n) lanes *= 2;
    return lanes;
}

}  // namespace cbam::cuda
