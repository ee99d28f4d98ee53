// Numbers that launchers and kernels agree on. No CUDA here, so that any C++ compiler takes it.
#pragma once

namespace cbam::cuda {

constexpr int kWarp = 32;
constexpr int kBatch = 4;  // rows that a thread takes at a time, so that as many of its accesses are under way

// The fewest neighbours of a warp that take n at once, if they are enough to merge kBatch results.
inline int lanes_for(long long n) {
    int lanes = kBatch;
    while (lanes < kWarp && lanes < n) lanes *= 2;
    return lanes;
}

}  // namespace cbam::cuda
