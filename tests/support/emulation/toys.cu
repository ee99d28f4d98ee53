#include "toys.h"

#include <cooperative_groups.h>

#include "csrc/cuda/common/device.cuh"

namespace toys {
namespace {

using cbam::cuda::load_vector;
using cbam::cuda::wait_for_launch_before;
using cbam::cuda::warp_sum;

constexpr int kThreads = 128;

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int cluster, size_t shared, Arguments... arguments) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = blocks, config.blockDim = kThreads, config.dynamicSmemBytes = shared;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// May begin before the launch ahead of it is over.
cudaError_t launch_early(void (*kernel)(const float*, float*, bool), int blocks, const float* x, float* y, bool wrong) {
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = blocks, config.blockDim = kThreads;
    config.attrs = &attribute, config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, x, y, wrong);
}

__device__ int element() { return blockIdx.x * kThreads + threadIdx.x; }

__device__ void sum_over_block(float v, float* sums, bool barrier) {
    const float sum = warp_sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    if (barrier) __syncthreads();
}

__global__ void block_sums_kernel(const float* x, float* y, bool wrong) {
    CBAM_SHARED(shared);
    float* sums = reinterpret_cast<float*>(shared);
    sum_over_block(x[element()], sums, !wrong);
    y[element()] = sums[0] + sums[1] + sums[2] + sums[3];
}

__global__ void block_sums_twice_kernel(const float* x, float* y, bool wrong) {
    CBAM_SHARED(shared);
    float* sums = reinterpret_cast<float*>(shared);
    sum_over_block(x[element()], sums, true);
    const float first = sums[0] + sums[1] + sums[2] + sums[3];
    if (!wrong) __syncthreads();
    sum_over_block(first, sums, true);
    y[element()] = (sums[0] + sums[1] + sums[2] + sums[3]) / kThreads;
}

__global__ void warp_neighbours_kernel(const float* x, float* y, bool wrong) {
    CBAM_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    values[threadIdx.x] = x[element()];
    if (!wrong) __syncwarp();
    y[element()] = values[threadIdx.x ^ 1];
}

__global__ void next_element_kernel(const float* x, float* y, int n, bool wrong) {
    const int i = element();
    y[i] = i + 1 < n || wrong ? x[i + 1] : 0;
}

__global__ void next_in_shared_kernel(const float* x, float* y, bool wrong) {
    CBAM_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    values[threadIdx.x] = x[element()];
    __syncthreads();
    y[element()] = threadIdx.x + 1 < kThreads || wrong ? values[threadIdx.x + 1] : 0;
}

__global__ void copy_kernel(const float* x, float* y, int n, bool wrong) {
    const int i = element();
    if (i < (wrong ? n - 1 : n)) y[i] = x[i];
}

__global__ void cluster_sums_kernel(const float* x, float* y, bool before, bool after) {
    CBAM_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
    values[threadIdx.x] = x[element()];
    if (before) cluster.sync();
    const float* others = cluster.map_shared_rank(values, cluster.block_rank() ^ 1);
    y[element()] = values[threadIdx.x] + others[threadIdx.x];
    if (after) cluster.sync();
}

__global__ void cluster_begins_kernel(const float* x, float* y, bool wrong) {
    CBAM_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    const auto cluster = cooperative_groups::this_cluster();
    if (!wrong) cluster.sync();
    cluster.map_shared_rank(values, cluster.block_rank() ^ 1)[threadIdx.x] = x[element()];
    cluster.sync();
    y[element()] = values[threadIdx.x] + x[element()];
}

__global__ void branches_kernel(const float* x, float* y, bool wrong) {
    if (wrong && threadIdx.x < kThreads / 2) {
        y[element()] = x[element()];
        __syncthreads();
    } else {
        y[element()] = x[element()];
        __syncthreads();
    }
}

__global__ void early_exit_kernel(const float* x, float* y, bool wrong) {
    y[element()] = x[element()];
    if (wrong && threadIdx.x > 100) return;
    __syncthreads();
}

__global__ void vectors_kernel(const float* x, float* y, bool wrong) {
    const int i = 4 * element();
    load_vector(x + i + (wrong && i == 0 ? 1 : 0)).store(y + i);
}

__global__ void last_block_kernel(const float* x, float* y, bool wrong) {
    const int i = element();
    y[wrong && threadIdx.x == 0 ? 0 : i] = x[i];
}

__global__ void begins_early_kernel(const float* x, float* y, bool wrong) {
    const float early = wrong ? x[element()] : 0;
    wait_for_launch_before();
    y[element()] = wrong ? early : x[element()];
}

__global__ void follows_nothing_kernel(const float* x, float* y, bool wrong) {
    if (wrong && blockIdx.x == 0) return;
    wait_for_launch_before();
    y[element()] = x[element()];
}

__global__ void overwritten_kernel(const float* x, float* y, bool wrong) {
    float* target = wrong ? const_cast<float*>(x) : y;
    target[element()] = x[element()];
}

__global__ void strided_kernel(const float* x, float* y, bool stride) {
    CBAM_SHARED(shared);
    float* values = reinterpret_cast<float*>(shared);
    const int lane = threadIdx.x % 32, warp = element() / 32, warps = gridDim.x * kThreads / 32;
    const int i = stride ? lane * warps + warp : element(), j = stride ? 32 * threadIdx.x : threadIdx.x;
    values[j] = x[i];
    __syncwarp();
    y[i] = values[j];
}

}  // namespace

cudaError_t block_sums(const float* x, float* y, int n, bool wrong) {
    return launch(block_sums_kernel, n / kThreads, 1, 4 * sizeof(float), x, y, wrong);
}

cudaError_t block_sums_twice(const float* x, float* y, int n, bool wrong) {
    return launch(block_sums_twice_kernel, n / kThreads, 1, 4 * sizeof(float), x, y, wrong);
}

cudaError_t warp_neighbours(const float* x, float* y, int n, bool wrong) {
    return launch(warp_neighbours_kernel, n / kThreads, 1, kThreads * sizeof(float), x, y, wrong);
}

cudaError_t next_element(const float* x, float* y, int n, bool wrong) {
    return launch(next_element_kernel, n / kThreads, 1, 0, x, y, n, wrong);
}

cudaError_t next_in_shared(const float* x, float* y, int n, bool wrong) {
    return launch(next_in_shared_kernel, n / kThreads, 1, kThreads * sizeof(float), x, y, wrong);
}

cudaError_t copy(const float* x, float* y, int n, bool wrong) {
    return launch(copy_kernel, n / kThreads, 1, 0, x, y, n, wrong);
}

cudaError_t cluster_sums(const float* x, float* y, int n, bool wrong) {
    return launch(cluster_sums_kernel, n / kThreads, 2, kThreads * sizeof(float), x, y, !wrong, true);
}

cudaError_t cluster_begins(const float* x, float* y, int n, bool wrong) {
    return launch(cluster_begins_kernel, n / kThreads, 2, kThreads * sizeof(float), x, y, wrong);
}

cudaError_t cluster_ends(const float* x, float* y, int n, bool wrong) {
    return launch(cluster_sums_kernel, n / kThreads, 2, kThreads * sizeof(float), x, y, true, !wrong);
}

cudaError_t branches(const float* x, float* y, int n, bool wrong) {
    return launch(branches_kernel, n / kThreads, 1, 0, x, y, wrong);
}

cudaError_t early_exit(const float* x, float* y, int n, bool wrong) {
    return launch(early_exit_kernel, n / kThreads, 1, 0, x, y, wrong);
}

cudaError_t vectors(const float* x, float* y, int n, bool wrong) {
    return launch(vectors_kernel, n / kThreads / 4, 1, 0, x, y, wrong);
}

cudaError_t last_block(const float* x, float* y, int n, bool wrong) {
    return launch(last_block_kernel, n / kThreads, 1, 0, x, y, wrong);
}

cudaError_t overwritten(const float* x, float* y, int n, bool wrong) {
    return launch(overwritten_kernel, n / kThreads, 1, 0, x, y, wrong);
}

cudaError_t begins_early(const float* x, float* y, int n, bool wrong) {
    return launch_early(begins_early_kernel, n / kThreads, x, y, wrong);
}

cudaError_t follows_nothing(const float* x, float* y, int n, bool wrong) {
    return launch_early(follows_nothing_kernel, n / kThreads, x, y, wrong);
}

cudaError_t strided(const float* x, float* y, int n, bool wrong) {
    return launch(strided_kernel, n / kThreads, 1, 32 * kThreads * sizeof(float), x, y, wrong);
}

cudaError_t large_shared(const float* x, float* y, int n, bool wrong) {
    constexpr int kBytes = 64 << 10;
    cudaFuncSetAttribute(copy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    return launch(copy_kernel, n / kThreads, 1, wrong ? kBytes + 1 : kBytes, x, y, n, false);
}

cudaError_t large_cluster(const float* x, float* y, int n, bool wrong) {
    cudaFuncSetAttribute(copy_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, !wrong);
    return launch(copy_kernel, 16, 16, 0, x, y, n, false);
}

cudaError_t odd_grid(const float* x, float* y, int n, bool wrong) {
    return launch(copy_kernel, wrong ? 5 : 6, 2, 0, x, y, n, false);
}

}  // namespace toys
