// Launches of one stream in a row, up to the first that fails.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace cbam::cuda {

constexpr int kThreads = 256;  // of a block

struct Launcher {
    cudaStream_t stream;
    bool programmatic = false;  // kernels may begin before the one ahead of them ends, and wait for it themselves
    cudaError_t status = cudaSuccess;

    // With this many blocks, and bytes of shared memory for each. No blocks: nothing is launched.
    template <class... Parameters, class... Arguments>
    void operator()(void (*kernel)(Parameters...), int64_t blocks, size_t shared, Arguments&&... arguments) {
        if (status != cudaSuccess || blocks == 0) return;
        if (blocks > INT32_MAX) {
            status = cudaErrorInvalidConfiguration;
            return;
        }
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(unsigned(blocks));
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = shared;
        config.stream = stream;
        cudaLaunchAttribute early{};
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
        config.attrs = &early;
        config.numAttrs = programmatic;
        status = cudaLaunchKernelEx(&config, kernel, arguments...);
    }

    // A launch whose blocks meet at counters (common/counters.cuh), ``count`` of them, which are 0 when it starts.
    template <class... Parameters, class... Arguments> void persistent(void (*kernel)(Parameters...), int64_t blocks,
                                                                       size_t shared, unsigned* counters, int64_t count,
                                                                       Arguments&&... arguments) {
        if (status == cudaSuccess && blocks)
            status = cudaMemsetAsync(counters, 0, size_t(count) * sizeof(unsigned), stream);
        (*this)(kernel, blocks, shared, arguments...);
    }
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace cbam::cuda
