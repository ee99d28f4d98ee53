// Splits an image among blocks and threads, and lays out their shared memory. Runs once per call, on the host.
#include <algorithm>
#include <numeric>

#include "../common/sizes.h"
#include "on_chip.h"

namespace cbam::cuda {

namespace {

// Returns the largest power of two that exceeds neither n nor limit.
int power_of_two_within(int n, int limit) {
    int power = 1;
    while (power * 2 <= std::min(n, limit)) power *= 2;
    return power;
}

// Allocates shared memory, aligned to 16 bytes.
struct Carver {
    int64_t used = 0;

    int take(int64_t bytes) {
        const int64_t at = used;
        used += (bytes + 15) / 16 * 16;
        return int(at);
    }
};

OnChip split(const Problem& p, int cluster) {
    OnChip o = {};
    o.cluster = cluster;
    o.rows = int(p.channels_last ? p.HW() : p.C);
    o.cols = int(p.channels_last ? p.C : p.HW());
    const int size = size_of(p.dtype), vector = 16 / size;
    o.unit = vector / std::gcd(vector, o.cols);
    const int units = (o.rows + o.unit - 1) / o.unit;
    o.max_rows = (units + cluster - 1) / cluster * o.unit;
    for (int rank = 0; rank <= cluster; ++rank) {
        o.first_row[rank] = std::min(int(int64_t(units) * rank / cluster) * o.unit, o.rows);
        o.first_column[rank] = int(int64_t(o.cols) * rank / cluster);
    }
    // A word is the elements of one access.
    const int words = o.cols / (o.cols % vector == 0 ? vector : o.cols % 4 == 0 ? 4 : 1);
    // Several words per lane, because merging lanes takes log2(lanes) steps.
    o.lanes = std::max(power_of_two_within(words / 4, kWarp), kBatch);
    const int batches = (o.max_rows + kBatch - 1) / kBatch;
    o.slices = std::clamp(kOnChipThreads / o.lanes / batches, 1, std::max(words / (2 * o.lanes), 1));
    o.groups = std::clamp(kOnChipThreads / words, 1, std::max(o.max_rows, 1));
    const int R = int(std::max<int64_t>(p.R, 1));
    o.mlp_lanes = std::max(power_of_two_within(R, kWarp), kBatch);
    o.mlp_groups = std::clamp(kOnChipThreads / R, 1, std::max(int(p.C) / cluster, 1));
    o.ws_slices = std::max(kOnChipThreads / kWarp / (2 * int(p.k)), 1);
    return o;
}

int64_t column_partials(const OnChip& o) { return int64_t(o.groups) * o.cols; }
int64_t row_partials(const OnChip& o) { return int64_t(o.slices) * o.max_rows; }

// Largest shared memory of a block on 9.0 and 10.0, in bytes.
constexpr int64_t kMaxShared = 227 << 10;

// Returns the layout that carve(OnChip&) computes for the split, with fewer groups and slices if needed to fit into
// kMaxShared. It depends on the shape only, so sums have the same order on every GPU.
template <class Carve> OnChip fit(const OnChip& split, Carve carve) {
    OnChip o = split;
    for (o.slices = split.slices; o.slices > 0; --o.slices)
        for (o.groups = split.groups; o.groups > 0; --o.groups) {
            carve(o);
            if (o.bytes <= kMaxShared) return o;
        }
    o = split;
    carve(o);
    return o;
}

}  // namespace

OnChip on_chip_forward_layout(const Problem& p, int cluster) {
    return fit(split(p, cluster), [&](OnChip& o) {
        Carver shared;
        o.x = shared.take(int64_t(o.max_rows) * o.cols * size_of(p.dtype));
        o.row_partials = shared.take(3 * row_partials(o) * sizeof(float));
        // Each block holds the pools of all pixels.
        o.pooled_rows = p.channels_last ? o.rows : o.max_rows;
        o.row_pools = shared.take(3 * o.pooled_rows * sizeof(float));
        o.column_pools = shared.take(3 * column_partials(o) * sizeof(float));
        o.hidden = shared.take(3 * p.R * sizeof(float));
        o.ws = shared.take((p.ws ? 2 * p.k * p.k + 1 : 0) * sizeof(float));
        o.bytes = shared.used;
    });
}

OnChip on_chip_backward_layout(const Problem& p, int cluster) {
    return fit(split(p, cluster), [&](OnChip& o) {
        const int64_t chunk = int64_t(o.max_rows) * o.cols * size_of(p.dtype), kk = p.ws ? p.k * p.k : 0;
        o.term_warps = std::clamp(o.groups, 1, kOnChipThreads / kWarp);
        Carver shared;
        o.x = shared.take(chunk);
        o.dy = shared.take(p.dy ? chunk : 0);
        o.channels = shared.take(16 * p.C);
        o.pixels = shared.take(16 * p.HW());
        o.row_partials = shared.take(row_partials(o) * sizeof(float));
        o.scratch = shared.take(std::max(column_partials(o), std::max(p.HW(), p.C)) * sizeof(float));
        o.hidden = shared.take((o.mlp_groups + 2) * p.R * sizeof(float));
        o.ws_partials = shared.take(o.ws_slices * (2 * kk + 1) * sizeof(float));
        o.ws = shared.take(2 * kk * sizeof(float));
        o.terms = shared.take(p.w1 ? o.term_warps * (p.channels_last ? p.C : o.max_rows) * sizeof(float) : 0);
        o.bytes = shared.used;
    });
}

}  // namespace cbam::cuda
