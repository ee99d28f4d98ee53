#include "forward.cuh"
#include "launch.cuh"

namespace cbam::cuda {

namespace {

template <class T> cudaError_t launch(const Problem& p, const OnChip& o, cudaStream_t stream) {
    return p.channels_last ? launch_on_chip<cbam_fwd_on_chip_kernel<T, true>>(p, o, stream)
                           : launch_on_chip<cbam_fwd_on_chip_kernel<T, false>>(p, o, stream);
}

}  // namespace

cudaError_t on_chip_forward(const Problem& p, int cluster, cudaStream_t stream) {
    const OnChip o = on_chip_forward_layout(p, cluster);
    switch (p.dtype) {
        case Dtype::f32: return launch<float>(p, o, stream);
        case Dtype::f16: return launch<__half>(p, o, stream);
        case Dtype::bf16: return launch<__nv_bfloat16>(p, o, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace cbam::cuda
