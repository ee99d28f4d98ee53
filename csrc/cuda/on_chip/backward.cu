#include "../launch.h"
#include "backward.cuh"
#include "launch.cuh"

namespace cbam::cuda {

namespace {

template <class T> cudaError_t launch(const Problem& p, const OnChip& o, cudaStream_t stream) {
    return p.channels_last ? launch_on_chip<cbam_bwd_on_chip_kernel<T, true>>(p, o, stream)
                           : launch_on_chip<cbam_bwd_on_chip_kernel<T, false>>(p, o, stream);
}

}  // namespace

// All kernels are compiled for the same GPUs, so one kernel answers for all.
bool has_clusters() {
    cudaFuncAttributes code = {};
    if (cudaFuncGetAttributes(&code, cbam_bwd_on_chip_kernel<float, false>) == cudaSuccess)
        return code.ptxVersion >= 90;
    cudaGetLastError();  // no later launch must report it
    return false;
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
