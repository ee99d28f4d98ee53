// Launches an on-chip kernel: a block or a cluster per image.
#pragma once

#include <mutex>

#include "on_chip.h"

namespace cbam::cuda {

// Allows the kernel all shared memory of the current device. A smaller limit might be too small for a launch by another
// thread. The limit is set once per kernel and device; if that fails, launches fail.
template <auto kernel> cudaError_t allow_shared_memory() {
    constexpr int kDevices = 64;
    static std::once_flag once[kDevices];
    int device = 0;
    if (const auto error = cudaGetDevice(&device)) return error;
    cudaError_t status = cudaSuccess;
    const auto allow = [&] {
        int limit = 0;
        status = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        if (status == cudaSuccess)
            status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
    };
    if (device < kDevices) std::call_once(once[device], allow);
    else allow();
    return status;
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
