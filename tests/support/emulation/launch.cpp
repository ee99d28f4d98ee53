// The runtime's part of a launch: what it refuses, and how often the kernel runs.
#include <algorithm>
#include <map>
#include <utility>

#include "checker.h"

namespace emulation {

void run_clusters(uint64_t count, uint32_t blocks);

int ptx_version = 90;

namespace {

cudaError_t last_error = cudaSuccess;
std::map<const void*, std::map<cudaFuncAttribute, int>> attributes;

constexpr size_t kSharedWithoutAsking = 48 << 10;
constexpr uint32_t kPortableCluster = 8;

size_t shared_limit(const void* kernel) {
    const size_t asked = attributes[kernel][cudaFuncAttributeMaxDynamicSharedMemorySize];
    return std::max(asked, kSharedWithoutAsking);
}

uint32_t cluster_limit(const void* kernel) {
    return attributes[kernel][cudaFuncAttributeNonPortableClusterSizeAllowed] ? kClusterLimit : kPortableCluster;
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel, uint32_t& cluster, bool& early) {
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (!threads || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
    if (config.dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        if (config.attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) {
            early = config.attrs[i].val.programmaticStreamSerializationAllowed;
            continue;
        }
        if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) return cudaErrorInvalidValue;
        const auto& dimension = config.attrs[i].val.clusterDim;
        if (!dimension.x || dimension.y != 1 || dimension.z != 1) return cudaErrorInvalidClusterSize;
        cluster = dimension.x;
    }
    if (cluster > cluster_limit(kernel) || grid.x % cluster) return cudaErrorInvalidClusterSize;
    return cudaSuccess;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const Kernel& kernel) {
    uint32_t cluster = 1;
    running.early = false;
    if (const cudaError_t error = check(config, kernel.code, cluster, running.early)) return last_error = error;
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    running.config = config;
    running.kernel = kernel;
    running.blocks_of_cluster = cluster;
    running.threads_of_block = block.x * block.y * block.z;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    running.together = cluster == 1 && blocks <= kClusterLimit;
    if (running.together) run_clusters(1, blocks);
    else run_clusters(blocks / cluster, cluster);
    return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    using namespace emulation;
    Buffer& buffer = nearest_buffer(uintptr_t(memory));
    const size_t offset = static_cast<unsigned char*>(memory) - buffer.begin;
    if (offset + bytes > buffer.bytes || !buffer.writable) return last_error = cudaErrorInvalidValue;
    memset(memory, value, bytes);
    for (size_t i = offset / kCell; checking && i * kCell < offset + bytes; ++i) buffer.cells[i] = {{kHost, 0}, {}, {}};
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = int(emulation::kShared);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    attributes->ptxVersion = emulation::ptx_version;
    return cudaSuccess;
}

// Less shared memory than before is an error here, though not in CUDA: with more than one thread, another may have
// asked for more of the same kernel, and not have launched it yet.
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    int& known = emulation::attributes[kernel][attribute];
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
        (value < known || size_t(value) > emulation::kShared))
        return emulation::last_error = cudaErrorInvalidValue;
    known = value;
    return cudaSuccess;
}
