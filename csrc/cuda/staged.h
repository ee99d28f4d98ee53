// The staged schedule: an operator is a sequence of passes over x, each a kernel of its own, and takes the images in
// groups small enough that a later pass finds in the L2 cache what an earlier one has read. Host side, torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace cbam::cuda {

// Bytes that a group of this many images needs.
int64_t staged_forward_workspace(const Problem&, int64_t images);
int64_t staged_products_workspace(const Problem&, int64_t images);
int64_t staged_backward_workspace(const Problem&, int64_t images);

// As the functions of launch.h, but for the sums over the images, which backward leaves to parameter_gradients.
cudaError_t staged_forward(const Problem&, int64_t images, void* workspace, cudaStream_t);
cudaError_t staged_apply(const Problem&, cudaStream_t);
cudaError_t staged_products(const Problem&, int64_t images, void* workspace, cudaStream_t);
cudaError_t staged_backward(const Problem&, int64_t images, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
