// Launches kernels in order on a stream. After an error, nothing more is launched.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace cbam::cuda {

constexpr int kThreads = 256;  // per block

struct Launcher {
    cudaStream_t stream;
    bool programmatic = false;  // a kernel may start before the previous one ends, and waits for it itself
    cudaError_t status = cudaSuccess;

    // Launches this many blocks with ``shared`` bytes of shared memory each; nothing if there are no blocks.
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

    // Clears ``count`` counters and launches a kernel whose blocks wait for them (common/counters.cuh).
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
