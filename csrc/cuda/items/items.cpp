#include "items.h"

namespace cbam::cuda {

int64_t items_workspace(Operator op, const Problem& p, const Plan& plan) {
    switch (p.dtype) {
        case Dtype::f32: return workspace_of<Dtype::f32>(op, p, plan);
        case Dtype::f64: return workspace_of<Dtype::f64>(op, p, plan);
        case Dtype::f16: return workspace_of<Dtype::f16>(op, p, plan);
        case Dtype::bf16: return workspace_of<Dtype::bf16>(op, p, plan);
    }
    return 0;
}

cudaError_t run_items(Operator op, const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    switch (p.dtype) {
        case Dtype::f32: return run_of<Dtype::f32>(op, p, plan, workspace, stream);
        case Dtype::f64: return run_of<Dtype::f64>(op, p, plan, workspace, stream);
        case Dtype::f16: return run_of<Dtype::f16>(op, p, plan, workspace, stream);
        case Dtype::bf16: return run_of<Dtype::bf16>(op, p, plan, workspace, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace cbam::cuda
