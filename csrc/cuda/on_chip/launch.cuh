// The launch of an on-chip kernel: a block or a cluster for each image.
#pragma once

#include "on_chip.h"

namespace cbam::cuda {

template <class Kernel>
cudaError_t launch_on_chip(Kernel* kernel, const Problem& p, const OnChip& o, cudaStream_t stream) {
    if (p.N == 0) return cudaSuccess;
    if (p.N * o.cluster > INT32_MAX) return cudaErrorInvalidConfiguration;
    // The most that the device has, and not o.bytes: another thread may be about to launch the same kernel with more.
    int device = 0, most = 0;
    if (const auto error = cudaGetDevice(&device)) return error;
    if (const auto error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
    if (const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most))
        return error;
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
