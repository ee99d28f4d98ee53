// The operators on a GPU, as functions of raw pointers: what the binding and the emulation call. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "../problem.h"

namespace cbam::cuda {

// What the choice of a schedule depends on; the binding asks the driver, tests make devices up.
struct Device {
    int multiprocessors;
    int64_t l2_bytes;
    int64_t shared_per_block;  // the most that a block may ask for
    bool clusters;             // whether blocks may form clusters, and a launch may begin early
};

// For Device, on the current device, of compute capability 9.0 or newer: whether its code is that of 9.0 or newer. What
// a driver makes of PTX for an older GPU has no clusters, and does not wait for the launch before it.
bool has_clusters();

enum class Schedule { staged, dataflow, on_chip };

struct Plan {
    Schedule schedule;
    int cluster;        // on chip: blocks of an image
    int blocks;         // dataflow: of the launch; any number gives the same results
    int64_t window;     // dataflow: bytes of x, and of dy, that shall stay in L2
    bool programmatic;  // staged: a launch may begin before the one ahead of it ends
};

// Pure functions. CBAM_FUSED_CUDA_SCHEDULE (auto, staged, dataflow, or the number of blocks of a cluster) overrides the
// choice; what it asks for and cannot be is refused by std::invalid_argument.
Plan plan_forward(const Problem&, const Device&, const char* wanted);
Plan plan_backward(const Problem&, const Device&, const char* wanted);

// Bytes of workspace that an operator needs beside its results; 256-byte aligned.
int64_t forward_workspace(const Problem&, const Plan&);
int64_t gate_grads_workspace(const Problem&, const Plan&);
int64_t backward_workspace(const Problem&, const Plan&);

// Asynchronous, on this stream of the current device. Problem says what is null for which operator: forward without y
// is gates_forward; backward with ``given`` is backward_from_gate_grads. backward leaves the sums over the images in
// dw1 ... dbs.
cudaError_t forward(const Problem&, const Plan&, void* workspace, cudaStream_t);
cudaError_t apply_gates(const Problem&, cudaStream_t);
cudaError_t gate_grads(const Problem&, const Plan&, void* workspace, cudaStream_t);
cudaError_t backward(const Problem&, const Plan&, void* workspace, cudaStream_t);

}  // namespace cbam::cuda
