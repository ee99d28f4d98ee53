// Small kernels whose blocks meet at counters. x, y and copy have ``parts`` parts of kThreads elements, one a thread.
#pragma once

#include <cuda_runtime_api.h>

namespace toys {

// What is wrong: in the kernel, in how it is launched, or in one of the functions of counters.cuh.
#define FAULTS(F)                  \
    F(none)                        \
    F(no_arrive)                   \
    F(no_wait)                     \
    F(low_count)                   \
    F(high_count)                  \
    F(wrong_order)                 \
    F(early_arrive)                \
    F(no_memset)                   \
    F(take_without_barrier)        \
    F(take_without_second_barrier) \
    F(wait_without_fence)          \
    F(wait_without_barrier)        \
    F(arrive_without_barrier)      \
    F(arrive_without_fence)        \
    F(plain_arrive)
#define NAME(name) name,
enum class Fault { FAULTS(NAME) };
#undef NAME

// y: in each part the sum of all parts of x, of the next element. Counters: tickets, copied parts.
cudaError_t gather(const float* x, float* copy, float* y, unsigned* counters, int parts, int blocks, Fault);

// Copies x. Wrong: take has no second barrier.
cudaError_t deal(const float* x, float* y, unsigned* counters, int parts, int blocks, bool wrong);

// Part t of y: that of x, and what y has in part t - 1 at the next element and in part t - 2 at the same. Counters:
// tickets, then one a part.
cudaError_t chain(const float* x, float* y, unsigned* counters, int parts, int blocks);

// Sums over the parts up to each, by a block a part, which waits without a ticket: right only if all blocks are alive.
cudaError_t neighbours(const float* x, float* y, unsigned* counters, int parts);

// Wrong: reads a counter while others add to it.
cudaError_t reads_counter(float* y, unsigned* counters, int parts);

}  // namespace toys
