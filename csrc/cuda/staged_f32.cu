#include "staged_run.cuh"

namespace cbam::cuda {
template cudaError_t run_staged_of<Dtype::f32>(StagedOperator, const Problem&, int64_t, void*, cudaStream_t);
template int64_t staged_workspace_of<Dtype::f32>(StagedOperator, const Problem&, int64_t);
}  // namespace cbam::cuda
