// Gradients of the parameters, from the gradients per image that any schedule wrote.
#pragma once

#include <cuda_runtime_api.h>

#include "../../problem.h"

namespace cbam::cuda {

// Writes dw1 ... dbs from p.partial and p.saved, in one launch. For an empty batch they are zeros.
cudaError_t parameter_gradients(const Problem& p, bool programmatic, cudaStream_t stream);

}  // namespace cbam::cuda
