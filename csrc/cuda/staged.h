// The staged schedule: an operator is a sequence of passes over x, each a kernel of its own, that a group of images
// goes through before the next; plan.cpp says how many. Host side, torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace cbam::cuda {

enum class StagedOperator { forward, apply, products, backward };

// Bytes of workspace for groups of this many images; apply needs none.
int64_t staged_workspace(StagedOperator, const Problem&, int64_t images);

// As the functions of launch.h, but for the sums over the images, which backward leaves to parameter_gradients.
cudaError_t run_staged(StagedOperator, const Problem&, int64_t images, void* workspace, cudaStream_t);

// The same for one element type, each a unit of compilation: staged_f32.cu and so on.
template <Dtype> int64_t staged_workspace_of(StagedOperator, const Problem&, int64_t images);
template <Dtype>
cudaError_t run_staged_of(StagedOperator, const Problem&, int64_t images, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
