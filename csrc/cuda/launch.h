// The operators on a GPU as functions of raw pointers, for the binding and the emulation. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace cbam::cuda {

// The properties on which the schedule depends. The binding asks the driver; tests make devices up.
struct Device {
    int multiprocessors;
    int64_t l2_bytes;
    int64_t shared_per_block;  // largest shared memory of a block, in bytes
    bool clusters;             // whether blocks may form clusters, and launches may start early
};

// Returns Device::clusters for the current device, of compute capability 9.0 or newer: whether its code is compiled for
// 9.0 or newer. PTX of an older architecture has no clusters and does not wait for the previous launch.
bool has_clusters();

enum class Schedule { staged, dataflow, on_chip };

struct Plan {
    Schedule schedule;
    int cluster;        // on chip: blocks per image
    int blocks;         // dataflow: blocks of the launch; results do not depend on it
    int64_t window;     // dataflow: bytes of x and dy to keep in L2
    bool programmatic;  // staged: a launch may start before the previous one ends
};

// Pure functions. CBAM_FUSED_CUDA_SCHEDULE (auto, staged, dataflow, or a number of blocks per image) overrides the
// choice. Throws std::invalid_argument if the call cannot use that schedule.
Plan plan_forward(const Problem&, const Device&, const char* wanted);
Plan plan_backward(const Problem&, const Device&, const char* wanted);

// Bytes of workspace of an operator, a multiple of 256.
int64_t forward_workspace(const Problem&, const Plan&);
int64_t gate_grads_workspace(const Problem&, const Plan&);
int64_t backward_workspace(const Problem&, const Plan&);

// Launch on this stream of the current device, without synchronization. problem.h says which pointers are null: forward
// without y is gates_forward; backward with ``given`` is backward_from_gate_grads. backward sums dw1 ... dbs over the
// images.
cudaError_t forward(const Problem&, const Plan&, void* workspace, cudaStream_t);
cudaError_t apply_gates(const Problem&, cudaStream_t);
cudaError_t gate_grads(const Problem&, const Plan&, void* workspace, cudaStream_t);
cudaError_t backward(const Problem&, const Plan&, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
