#include "staged.h"

#include <algorithm>

#include "staged_run.h"

namespace cbam::cuda {

namespace {

int64_t group_size(const Problem& p, int64_t images) { return std::max<int64_t>(1, std::min(images, p.N)); }

cudaError_t run(StagedOperator op, const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    images = group_size(p, images);
    switch (p.dtype) {
        case Dtype::f32: return run_staged<Dtype::f32>(op, p, images, workspace, stream);
        case Dtype::f64: return run_staged<Dtype::f64>(op, p, images, workspace, stream);
        case Dtype::f16: return run_staged<Dtype::f16>(op, p, images, workspace, stream);
        case Dtype::bf16: return run_staged<Dtype::bf16>(op, p, images, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

int64_t workspace(StagedOperator op, const Problem& p, int64_t images) {
    images = group_size(p, images);
    switch (p.dtype) {
        case Dtype::f32: return staged_workspace<Dtype::f32>(op, p, images);
        case Dtype::f64: return staged_workspace<Dtype::f64>(op, p, images);
        case Dtype::f16: return staged_workspace<Dtype::f16>(op, p, images);
        case Dtype::bf16: return staged_workspace<Dtype::bf16>(op, p, images);
    }
    return 0;
}

}  // namespace

int64_t staged_forward_workspace(const Problem& p, int64_t images) {
    return workspace(StagedOperator::forward, p, images);
}

int64_t staged_products_workspace(const Problem& p, int64_t images) {
    return workspace(StagedOperator::products, p, images);
}

int64_t staged_backward_workspace(const Problem& p, int64_t images) {
    return workspace(StagedOperator::backward, p, images);
}

cudaError_t staged_forward(const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    return run(StagedOperator::forward, p, images, workspace, stream);
}

cudaError_t staged_apply(const Problem& p, cudaStream_t stream) {
    return run(StagedOperator::apply, p, p.N, nullptr, stream);
}

cudaError_t staged_products(const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    return run(StagedOperator::products, p, images, workspace, stream);
}

cudaError_t staged_backward(const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    return run(StagedOperator::backward, p, images, workspace, stream);
}

}  // namespace cbam::cuda
