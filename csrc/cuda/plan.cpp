// Chooses the schedule of an operator from its shape and the device. Pure functions.
#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "on_chip/on_chip.h"

namespace cbam::cuda {

namespace {

// Bytes of x per block. A block loads kSmallShare in about the time of a launch. With more than kLargeShare, a block
// alone on a multiprocessor takes longer than the launches of the staged schedule.
constexpr int64_t kSmallShare = 32 << 10, kLargeShare = 128 << 10;

bool aligned(std::initializer_list<const void*> tensors) {
    return std::all_of(tensors.begin(), tensors.end(), [](const void* t) { return uintptr_t(t) % 16 == 0; });
}

constexpr char kOnlyStaged[] = "float64 has only the staged schedule";

// Returns why no number of blocks can run on chip; null if one might.
const char* obstacle(const Problem& p) {
    if (p.dtype == Dtype::f64) return kOnlyStaged;
    if (!p.switches.tutorial()) return "the on-chip schedule has the tutorial's switches alone";
    if (p.C * p.HW() * size_of(p.dtype) % 16) return "an image must be a multiple of 16 bytes for the on-chip schedule";
    if (p.C * p.HW() >= int64_t(1) << 24) return "the image is too large for the on-chip schedule";
    if (!aligned({p.x, p.residual, p.y, p.dy, p.dx, p.dresidual}))
        return "tensors must begin at a multiple of 16 bytes for the on-chip schedule";
    return nullptr;
}

// Returns the largest number of blocks for an image: its rows that begin at a multiple of 16 bytes.
int64_t most_blocks(const Problem& p) {
    const int64_t vector = 16 / size_of(p.dtype);
    const int64_t rows = p.channels_last ? p.HW() : p.C, cols = p.channels_last ? p.C : p.HW();
    return rows * std::gcd(vector, cols) / vector;
}

// With clusters, the code is compiled for 9.0 or newer (has_clusters) and waits for the previous launch.
Plan staged(const Device& device) { return {Schedule::staged, 1, 0, 0, device.clusters}; }

// As many blocks as fit, and a third of L2, because L2 does not evict lines in order.
Plan dataflow(const Device& device) {
    return {Schedule::dataflow, 1, 2 * device.multiprocessors, device.l2_bytes / 3, false};
}

Plan on_chip(int cluster) { return {Schedule::on_chip, cluster, 0, 0, false}; }

using LayoutOf = OnChip (*)(const Problem&, int cluster);

[[noreturn]] void refuse(const std::string& wanted, const std::string& why) {
    throw std::invalid_argument("CBAM_FUSED_CUDA_SCHEDULE=" + wanted + ": " + why);
}

Plan as_wanted(const Problem& p, const Device& device, LayoutOf layout, const std::string& wanted) {
    const int cluster = wanted == "1" ? 1 : wanted == "2" ? 2 : 0;
    if (!cluster) refuse(wanted, "must be auto, staged, dataflow or a number of blocks: 1 or 2");
    if (const char* why = obstacle(p)) refuse(wanted, why);
    if (cluster > 1 && !device.clusters) refuse(wanted, "there are no clusters of blocks");
    if (cluster > most_blocks(p))
        refuse(wanted, "an image can be shared by at most " + std::to_string(most_blocks(p)) + " blocks");
    const int64_t bytes = layout(p, cluster).bytes;
    if (bytes > device.shared_per_block)
        refuse(wanted, "a block would need " + std::to_string(bytes) + " bytes of shared memory, and may have " +
                           std::to_string(device.shared_per_block));
    return on_chip(cluster);
}

// On chip if the image fits into one or two blocks. On an H100, the exchange between more blocks takes longer than the
// staged schedule's further reads of x (docs/design/cuda.md). Few images get two blocks each if all blocks run at once.
Plan choose(const Problem& p, const Device& device, LayoutOf layout) {
    if (obstacle(p) || p.N == 0) return staged(device);
    const int64_t limit = device.clusters ? std::min<int64_t>(most_blocks(p), kLargestCluster) : 1;
    int cluster = 1;
    while (cluster <= limit && layout(p, cluster).bytes > device.shared_per_block) cluster *= 2;
    if (cluster > limit) return staged(device);
    const auto share = [&] { return p.C * p.HW() * size_of(p.dtype) / cluster; };
    if (cluster * 2 <= limit && p.N * cluster * 2 <= device.multiprocessors && share() > kSmallShare) cluster *= 2;
    if (p.N * cluster * 2 < device.multiprocessors && share() > kLargeShare) return staged(device);
    return on_chip(cluster);
}

Plan plan(const Problem& p, const Device& device, const char* wanted, LayoutOf layout) {
    const std::string choice = wanted ? wanted : "auto";
    if (choice == "staged") return staged(device);
    if (choice == "dataflow") {
        if (p.dtype == Dtype::f64) refuse(choice, kOnlyStaged);
        if (p.switches.even_ties) refuse(choice, "it has no even ties");
        if (!device.clusters) refuse(choice, "it is compiled for compute capability 9.0 and newer");
        return dataflow(device);
    }
    if (choice == "auto") return choose(p, device, layout);
    return as_wanted(p, device, layout, choice);
}

}  // namespace

Plan plan_forward(const Problem& p, const Device& device, const char* wanted) {
    return plan(p, device, wanted, on_chip_forward_layout);
}

Plan plan_backward(const Problem& p, const Device& device, const char* wanted) {
    return plan(p, device, wanted, on_chip_backward_layout);
}

}  // namespace cbam::cuda
