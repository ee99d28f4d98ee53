// The gradients of the parameters, whichever schedule made the images' parts of them.
#pragma once

#include <cuda_runtime_api.h>

#include "../../problem.h"

namespace cbam::cuda {

// dw1 ... dbs from p.partial and p.saved, in one launch. Without images they are zeros.
cudaError_t parameter_gradients(const Problem& p, bool programmatic, cudaStream_t stream);

}  // namespace cbam::cuda
