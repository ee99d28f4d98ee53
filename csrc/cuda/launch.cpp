// The operators of launch.h, by the schedule of their plans.
#include "launch.h"

#include "on_chip.h"
#include "parameters.h"
#include "staged.h"

namespace cbam::cuda {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

int64_t forward_workspace(const Problem& p, const Plan& plan) {
    return plan.schedule == Schedule::on_chip ? 0 : aligned(staged_workspace(StagedOperator::forward, p, plan.images));
}

// One pass and the joining of its sums: on-chip it would move as many bytes.
int64_t products_workspace(const Problem& p, const Plan& plan) {
    return aligned(staged_workspace(StagedOperator::products, p, plan.images));
}

int64_t backward_workspace(const Problem& p, const Plan& plan) {
    return plan.schedule == Schedule::on_chip ? 0 : aligned(staged_workspace(StagedOperator::backward, p, plan.images));
}

cudaError_t forward(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    return plan.schedule == Schedule::on_chip ? on_chip_forward(p, plan.cluster, stream)
                                              : run_staged(StagedOperator::forward, p, plan.images, workspace, stream);
}

cudaError_t apply(const Problem& p, cudaStream_t stream) {
    return run_staged(StagedOperator::apply, p, p.N, nullptr, stream);
}

cudaError_t products(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    return run_staged(StagedOperator::products, p, plan.images, workspace, stream);
}

cudaError_t backward(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    const cudaError_t error = plan.schedule == Schedule::on_chip
                                  ? on_chip_backward(p, plan.cluster, stream)
                                  : run_staged(StagedOperator::backward, p, plan.images, workspace, stream);
    return error == cudaSuccess ? parameter_gradients(p, stream) : error;
}

}  // namespace cbam::cuda
