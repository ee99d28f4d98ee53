#include "run.cuh"

namespace cbam::cuda {
template cudaError_t run_of<Dtype::f64>(Operator, const Problem&, const Plan&, void*, cudaStream_t);
template int64_t workspace_of<Dtype::f64>(Operator, const Problem&, const Plan&);
}  // namespace cbam::cuda
