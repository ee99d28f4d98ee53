#include "staged.h"

#include <algorithm>

namespace cbam::cuda {

namespace {

int64_t group_size(const Problem& p, int64_t images) { return std::max<int64_t>(1, std::min(images, p.N)); }

}  // namespace

int64_t staged_workspace(StagedOperator op, const Problem& p, int64_t images) {
    images = group_size(p, images);
    switch (p.dtype) {
        case Dtype::f32: return staged_workspace_of<Dtype::f32>(op, p, images);
        case Dtype::f64: return staged_workspace_of<Dtype::f64>(op, p, images);
        case Dtype::f16: return staged_workspace_of<Dtype::f16>(op, p, images);
        case Dtype::bf16: return staged_workspace_of<Dtype::bf16>(op, p, images);
    }
    return 0;
}

cudaError_t run_staged(StagedOperator op, const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    images = group_size(p, images);
    switch (p.dtype) {
        case Dtype::f32: return run_staged_of<Dtype::f32>(op, p, images, workspace, stream);
        case Dtype::f64: return run_staged_of<Dtype::f64>(op, p, images, workspace, stream);
        case Dtype::f16: return run_staged_of<Dtype::f16>(op, p, images, workspace, stream);
        case Dtype::bf16: return run_staged_of<Dtype::bf16>(op, p, images, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace cbam::cuda
