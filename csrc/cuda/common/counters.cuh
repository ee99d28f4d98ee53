// Counters in global memory that order the blocks of one launch. All threads of a block call each function.
//
// The memory order is that of the grid barrier of cooperative groups: barrier, fence and atomic addition on one side;
// relaxed load, fence and barrier on the other. Data that a launch writes and then reads must not be read by
// ld.global.nc: no const __restrict__ and no __ldg.
#pragma once

#include "device.cuh"

namespace cbam::cuda {

constexpr unsigned kPollNanoseconds = 32;

// Reads the counter from memory on each call, never from a register.
__device__ __forceinline__ unsigned relaxed_load(const unsigned* counter) {
#ifdef CBAM_EMULATION
    return emulation::relaxed_load(counter);
#else
    return *static_cast<const volatile unsigned*>(counter);
#endif
}

// Returns the next ticket, from 0 on: the same for all threads of a block, another for each call and block.
__device__ __forceinline__ unsigned take(unsigned* counter) {
    CBAM_SHARED_VALUE(unsigned, ticket);
    if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
    __syncthreads();
    const unsigned taken = ticket;
    __syncthreads();  // before the next call writes ticket
    return taken;
}

// Returns when ``count`` blocks have arrived. Their earlier writes can then be read.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned count) {
    if (threadIdx.x == 0) {
        while (relaxed_load(counter) < count) __nanosleep(kPollNanoseconds);
        __threadfence();
    }
    __syncthreads();
}

// Makes the writes of the whole block visible to the blocks that wait for this counter.
__device__ __forceinline__ void arrive(unsigned* counter) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
    }
}

}  // namespace cbam::cuda
