// Counters in global memory, at which the blocks of one launch meet. Each function is called by all threads of a block.
//
// The order is that of the grid barrier of cooperative groups: barrier, fence, atomic addition on one side; relaxed
// load, fence, barrier on the other. What a launch writes and reads in this way must not be read by ld.global.nc: no
// const __restrict__ and no __ldg.
#pragma once

#include "device.cuh"

namespace cbam::cuda {

constexpr unsigned kPollNanoseconds = 32;

// What is there now, and not what a register holds of it.
__device__ __forceinline__ unsigned relaxed_load(const unsigned* counter) {
#ifdef CBAM_EMULATION
    return emulation::relaxed_load(counter);
#else
    return *static_cast<const volatile unsigned*>(counter);
#endif
}

// The next ticket, from 0: the same for the whole block, another for each call and block.
__device__ __forceinline__ unsigned take(unsigned* counter) {
    CBAM_SHARED_VALUE(unsigned, ticket);
    if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
    __syncthreads();
    const unsigned taken = ticket;
    __syncthreads();  // the next call writes it again
    return taken;
}

// Returns once as many blocks have arrived; what they wrote before that can be read then.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned count) {
    if (threadIdx.x == 0) {
        while (relaxed_load(counter) < count) __nanosleep(kPollNanoseconds);
        __threadfence();
    }
    __syncthreads();
}

// Shows what the whole block has written to those that wait for this counter.
__device__ __forceinline__ void arrive(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
    }
}

}  // namespace cbam::cuda
