#include "counter_toys.h"
#include "csrc/cuda/common/counters.cuh"
#include "csrc/cuda/common/launcher.h"

namespace toys {
namespace {

using namespace cbam::cuda;

// Those of counters.cuh, with one error inside.
template <Fault fault> struct Counters {
    static __device__ unsigned take(unsigned* counter) {
        CBAM_SHARED_VALUE(unsigned, ticket);
        if (threadIdx.x == 0) ticket = atomicAdd(counter, 1u);
        if (fault != Fault::take_without_barrier) __syncthreads();
        const unsigned taken = ticket;
        if (fault != Fault::take_without_second_barrier) __syncthreads();
        return taken;
    }

    static __device__ void wait_for(const unsigned* counter, unsigned count) {
        if (threadIdx.x == 0) {
            while (relaxed_load(counter) < count) __nanosleep(1);
            if (fault != Fault::wait_without_fence) __threadfence();
        }
        if (fault != Fault::wait_without_barrier) __syncthreads();
    }

    static __device__ void arrive(unsigned* counter) {
        if (fault != Fault::arrive_without_barrier) __syncthreads();
        if (threadIdx.x) return;
        if (fault != Fault::arrive_without_fence) __threadfence();
        if (fault == Fault::plain_arrive) ++*counter;
        else atomicAdd(counter, 1u);
    }
};

template <> struct Counters<Fault::none> {
    static __device__ unsigned take(unsigned* counter) { return cbam::cuda::take(counter); }
    static __device__ void wait_for(const unsigned* counter, unsigned n) { cbam::cuda::wait_for(counter, n); }
    static __device__ void arrive(unsigned* counter) { cbam::cuda::arrive(counter); }
};

// Items 0 ... parts - 1 copy a part of x each into parts of ``copy``; each of the other items adds up all of them and
// writes its part of y. An item has n / parts = blockDim.x elements.
template <Fault fault>
__global__ void gather_kernel(const float* x, float* copy, float* y, unsigned* counters, unsigned parts) {
    using Used = Counters<fault>;
    unsigned *const tickets = counters, *const copied = counters + 1;
    const int i = threadIdx.x, size = blockDim.x;
    for (;;) {
        unsigned item = Used::take(tickets);
        if (item >= 2 * parts) return;
        if (fault == Fault::wrong_order) item = 2 * parts - 1 - item;
        if (item < parts) {
            if (fault == Fault::early_arrive) Used::arrive(copied);
            copy[item * size + i] = x[item * size + i];
            const bool missing = fault == Fault::no_arrive && item == 1;
            if (!missing && fault != Fault::early_arrive) Used::arrive(copied);
            continue;
        }
        const unsigned count = fault == Fault::low_count ? parts - 1 : fault == Fault::high_count ? parts + 1 : parts;
        if (fault != Fault::no_wait) Used::wait_for(copied, count);
        float sum = 0;
        for (unsigned part = 0; part < parts; ++part) sum += copy[part * size + (i + 1) % size];
        y[(item - parts) * size + i] = sum;
    }
}

// Blocks that never meet in another way than by taking.
template <Fault fault> __global__ void deal_kernel(const float* x, float* y, unsigned* counters, unsigned parts) {
    for (unsigned item; (item = Counters<fault>::take(counters)) < parts;)
        y[item * blockDim.x + threadIdx.x] = x[item * blockDim.x + threadIdx.x];
}

// Item t adds x to what item t - 1 wrote: an order through all blocks, of which each knows the last alone.
__global__ void chain_kernel(const float* x, float* y, unsigned* counters, unsigned parts) {
    const int i = threadIdx.x, size = blockDim.x;
    for (unsigned item; (item = take(counters)) < parts;) {
        float sum = x[item * size + i];
        if (item) {
            wait_for(counters + item, 1);
            sum += y[(item - 1) * size + (i + 1) % size];
            if (item > 1) sum += y[(item - 2) * size + i];
        }
        y[item * size + i] = sum;
        arrive(counters + item + 1);
    }
}

// Each block waits for the one before it, which there is no reason to have started.
__global__ void neighbours_kernel(const float* x, float* y, unsigned* counters) {
    const int i = threadIdx.x, size = blockDim.x, from = blockIdx.x * size;
    float sum = x[from + i];
    if (blockIdx.x) {
        wait_for(counters + blockIdx.x, 1);
        sum += y[from - size + i];
    }
    y[from + i] = sum;
    arrive(counters + blockIdx.x + 1);
}

__global__ void reads_counter_kernel(float* y, unsigned* counters) {
    arrive(counters);
    y[blockIdx.x * blockDim.x + threadIdx.x] = float(counters[0]);
}

template <Fault fault>
cudaError_t gather_with(const float* x, float* copy, float* y, unsigned* counters, int parts, int blocks) {
    Launcher launch{nullptr};
    if (fault == Fault::no_memset) launch(gather_kernel<fault>, blocks, 0, x, copy, y, counters, unsigned(parts));
    else launch.persistent(gather_kernel<fault>, blocks, 0, counters, 2, x, copy, y, counters, unsigned(parts));
    return launch.status;
}

}  // namespace

cudaError_t gather(const float* x, float* copy, float* y, unsigned* counters, int parts, int blocks, Fault fault) {
    switch (fault) {
#define CASE(name) \
    case Fault::name: return gather_with<Fault::name>(x, copy, y, counters, parts, blocks);
        FAULTS(CASE)
#undef CASE
    }
    return cudaErrorInvalidValue;
}

cudaError_t deal(const float* x, float* y, unsigned* counters, int parts, int blocks, bool wrong) {
    Launcher launch{nullptr};
    const auto kernel = wrong ? deal_kernel<Fault::take_without_second_barrier> : deal_kernel<Fault::none>;
    launch.persistent(kernel, blocks, 0, counters, 1, x, y, counters, unsigned(parts));
    return launch.status;
}

cudaError_t chain(const float* x, float* y, unsigned* counters, int parts, int blocks) {
    Launcher launch{nullptr};
    launch.persistent(chain_kernel, blocks, 0, counters, parts + 1, x, y, counters, unsigned(parts));
    return launch.status;
}

cudaError_t neighbours(const float* x, float* y, unsigned* counters, int parts) {
    Launcher launch{nullptr};
    launch.persistent(neighbours_kernel, parts, 0, counters, parts + 1, x, y, counters);
    return launch.status;
}

cudaError_t reads_counter(float* y, unsigned* counters, int parts) {
    Launcher launch{nullptr};
    launch.persistent(reads_counter_kernel, parts, 0, counters, 1, y, counters);
    return launch.status;
}

}  // namespace toys
