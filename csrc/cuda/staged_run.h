// One element type of the staged schedule is one unit of compilation, staged_f32.cu and so on.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace cbam::cuda {

enum class StagedOperator { forward, apply, products, backward };

template <Dtype dtype>
cudaError_t run_staged(StagedOperator, const Problem&, int64_t images, void* workspace, cudaStream_t);

// Bytes of workspace that it needs for a group of images.
template <Dtype dtype> int64_t staged_workspace(StagedOperator, const Problem&, int64_t images);

}  // namespace cbam::cuda
