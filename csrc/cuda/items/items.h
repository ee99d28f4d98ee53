// The schedules that cut the work of an operator into items: the phases driver, a launch for each kind of item, and the
// dataflow driver, one launch. Both have the same items, so the same results. Host side, torch-free.
#pragma once

#include "../launch.h"

namespace cbam::cuda {

enum class Operator { forward, apply_gates, gate_grads, backward };

// Bytes of workspace; apply needs none.
int64_t items_workspace(Operator, const Problem&, const Plan&);

// As the functions of launch.h.
cudaError_t run_items(Operator, const Problem&, const Plan&, void* workspace, cudaStream_t);

// The same for one element type, each a unit of compilation: items_f32.cu and so on.
template <Dtype> int64_t workspace_of(Operator, const Problem&, const Plan&);
template <Dtype> cudaError_t run_of(Operator, const Problem&, const Plan&, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
