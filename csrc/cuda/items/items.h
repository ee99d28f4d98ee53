// The schedules that split an operator into items: the phases driver launches each kind of item, the dataflow driver
// launches once. Both compute the same items, so they have the same results. Host code, torch-free.
#pragma once

#include "../launch.h"

namespace cbam::cuda {

enum class Operator { forward, apply_gates, gate_grads, backward };

// Bytes of workspace; apply_gates needs none.
int64_t items_workspace(Operator, const Problem&, const Plan&);

// See launch.h.
cudaError_t run_items(Operator, const Problem&, const Plan&, void* workspace, cudaStream_t);

// The same for one dtype, each in a file of its own: items_f32.cu and so on.
template <Dtype> int64_t workspace_of(Operator, const Problem&, const Plan&);
template <Dtype> cudaError_t run_of(Operator, const Problem&, const Plan&, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
