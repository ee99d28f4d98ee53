// Numbers that launchers and kernels agree on. No CUDA here, so that any C++ compiler takes it.
#pragma once

namespace cbam::cuda {

constexpr int kWarp = 32;
constexpr int kBatch = 4;  // rows that a thread takes at a time, so that as many of its accesses are under way

}  // namespace cbam::cuda
