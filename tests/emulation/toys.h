// Small kernels, each right or, with ``wrong``, with one error that the emulation must report.
#pragma once

#include <cuda_runtime_api.h>

namespace toys {

// y[i] = the sum of x over the block of i; n a multiple of the 128 threads of a block.
cudaError_t block_sums(const float* x, float* y, int n, bool wrong);

}  // namespace toys
