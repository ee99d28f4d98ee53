// The launch of an on-chip kernel: a block or a cluster for each image.
#pragma once

#include <atomic>

#include "on_chip.h"

namespace cbam::cuda {

// The kernel may have all shared memory of the current device: not only what this launch needs, since another thread
// may be about to launch it with more. The runtime is asked once for each kernel and device.
template <auto kernel> cudaError_t allow_shared_memory() {
    static std::atomic<uint64_t> allowed;  // a bit for each of the first devices
    int device = 0, most = 0;
    if (const auto error = cudaGetDevice(&device)) return error;
    const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
    if (allowed & bit) return cudaSuccess;
    if (const auto error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
    if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most))
        return error;
    allowed |= bit;
    return cudaSuccess;
}

template <auto kernel> cudaError_t launch_on_chip(const Problem& p, const OnChip& o, cudaStream_t stream) {
    if (p.N == 0) return cudaSuccess;
    if (p.N * o.cluster > INT32_MAX) return cudaErrorInvalidConfiguration;
    if (const auto error = allow_shared_memory<kernel>()) return error;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(o.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(p.N * o.cluster));
    config.blockDim = dim3(kOnChipThreads);
    config.dynamicSmemBytes = size_t(o.bytes);
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = o.cluster > 1;
    return cudaLaunchKernelEx(&config, kernel, p, o);
}

}  // namespace cbam::cuda
