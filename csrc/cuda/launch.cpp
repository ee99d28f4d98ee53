// Calls the schedule that the plan names.
#include "launch.h"

#include "items/items.h"
#include "items/parameters.h"
#include "on_chip/on_chip.h"

namespace cbam::cuda {

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

int64_t forward_workspace(const Problem& p, const Plan& plan) {
    return plan.schedule == Schedule::on_chip ? 0 : aligned(items_workspace(Operator::forward, p, plan));
}

// gate_grads makes one pass over x and dy; on chip it would move as many bytes.
int64_t gate_grads_workspace(const Problem& p, const Plan& plan) {
    return aligned(items_workspace(Operator::gate_grads, p, plan));
}

int64_t backward_workspace(const Problem& p, const Plan& plan) {
    return plan.schedule == Schedule::on_chip ? 0 : aligned(items_workspace(Operator::backward, p, plan));
}

cudaError_t forward(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    return plan.schedule == Schedule::on_chip ? on_chip_forward(p, plan.cluster, stream)
                                              : run_items(Operator::forward, p, plan, workspace, stream);
}

cudaError_t apply_gates(const Problem& p, cudaStream_t stream) {
    return run_items(Operator::apply_gates, p, Plan{}, nullptr, stream);
}

cudaError_t gate_grads(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    return run_items(Operator::gate_grads, p, plan, workspace, stream);
}

cudaError_t backward(const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    if (plan.schedule != Schedule::on_chip) return run_items(Operator::backward, p, plan, workspace, stream);
    const cudaError_t error = on_chip_backward(p, plan.cluster, stream);
    return error == cudaSuccess ? parameter_gradients(p, false, stream) : error;
}

}  // namespace cbam::cuda
