// The launch of an on-chip kernel: a block or a cluster for each image.
#pragma once

#include <mutex>

#include "on_chip.h"

namespace cbam::cuda {

// The kernel may have all shared memory of the current device: not only what this launch needs, since another thread
// may be about to launch it with more. The runtime is asked once for each kernel and device; if it fails, so do
// launches.
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
