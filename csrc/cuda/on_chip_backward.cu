#include "launch.h"
#include "on_chip_backward.cuh"
#include "on_chip_launch.cuh"

namespace cbam::cuda {

namespace {

template <class T> cudaError_t launch(const Problem& p, const OnChip& o, cudaStream_t stream) {
    if (o.cluster > 1)
        return p.channels_last ? launch_on_chip(on_chip_backward_kernel<T, true, true>, p, o, stream)
                               : launch_on_chip(on_chip_backward_kernel<T, false, true>, p, o, stream);
    return p.channels_last ? launch_on_chip(on_chip_backward_kernel<T, true, false>, p, o, stream)
                           : launch_on_chip(on_chip_backward_kernel<T, false, false>, p, o, stream);
}

constexpr int kPortableCluster = 8;  // which every device with clusters has

}  // namespace

// Of all on-chip kernels, which have the same threads and registers, the answer is that of one. It is for blocks that
// have a multiprocessor each. What a driver makes of PTX for an older GPU has no clusters, on whichever GPU.
int largest_cluster(int64_t shared_per_block) {
    const auto kernel = on_chip_backward_kernel<float, false, true>;
    cudaFuncAttributes code = {};
    if (cudaFuncGetAttributes(&code, kernel) || code.ptxVersion < 90) {
        cudaGetLastError();
        return 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(kOnChipThreads);
    config.dynamicSmemBytes = size_t(shared_per_block);
    int blocks = 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_per_block)) ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ||
        cudaOccupancyMaxPotentialClusterSize(&blocks, kernel, &config)) {
        cudaGetLastError();  // is not that of a later launch
        return kPortableCluster;
    }
    return blocks;
}

cudaError_t on_chip_backward(const Problem& p, int cluster, cudaStream_t stream) {
    const OnChip o = on_chip_backward_layout(p, cluster);
    switch (p.dtype) {
        case Dtype::f32: return launch<float>(p, o, stream);
        case Dtype::f16: return launch<__half>(p, o, stream);
        case Dtype::bf16: return launch<__nv_bfloat16>(p, o, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace cbam::cuda
