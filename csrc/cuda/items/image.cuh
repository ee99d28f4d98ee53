// Pointers to the arrays of an image in saved, index and partial. F is the accumulation type. csrc/cpu/workspace.h has
// the same layout.
#pragma once

#include "../../activations.h"
#include "../../problem.h"
#include "../common/device.cuh"

namespace cbam::cuda {

// A Problem, and the offsets of the arrays in an image's row of saved, index and partial.
struct Layout : Problem {
    int64_t saved_row, gate, hidden_layer, gate_terms, maps, index_row, partial_row, sums, dhidden_layer, dconv;

    explicit Layout(const Problem& p) : Problem(p) {
        saved_row = p.saved_size(), index_row = p.index_size(), partial_row = p.partial_size();
        gate = p.switches.pools() * p.C;
        hidden_layer = gate + p.C;
        gate_terms = hidden_layer + p.saved_hidden;
        maps = saved_row - 3 * p.HW();
        sums = p.switches.gates() * p.C;
        dhidden_layer = sums + p.switches.gates() * p.R;
        dconv = partial_row - 2 * p.k * p.k - 1;
    }
};

template <class F> struct Image {
    const Layout& p;
    int64_t n;

    __device__ F* saved(int64_t offset) const { return (F*)p.saved + n * p.saved_row + offset; }
    // Mean and maximum over the pixels; an absent pool is left out. With mean_of_pools, pool(0) is the mean of both.
    __device__ F* pool(int i) const { return saved(i * p.C); }
    // The channel gate, or null; the two gates whose sum it is.
    __device__ F* g() const { return p.channel ? saved(p.gate) : nullptr; }
    __device__ F* gate_term(int i) const { return saved(p.gate_terms + i * p.C); }
    // The hidden layer of one term, before the activation.
    __device__ F* hidden(int term) const { return saved(p.hidden_layer + term * p.R); }
    __device__ F* mean_c() const { return saved(p.maps); }
    __device__ F* max_c() const { return saved(p.maps + p.HW()); }
    // The saved spatial gate, and the given or the saved one; null if absent.
    __device__ F* s() const { return p.spatial ? saved(p.maps + 2 * p.HW()) : nullptr; }
    __device__ const F* spatial_gate() const { return p.s ? (const F*)p.s + n * p.HW() : s(); }

    __device__ int32_t* argmax_hw() const { return p.index + n * p.index_row; }
    __device__ int32_t* argmax_c() const { return p.index + (n + 1) * p.index_row - p.HW(); }

    __device__ F* partial(int64_t offset) const { return (F*)p.partial + n * p.partial_row + offset; }
    __device__ F* dlogit(int gate) const { return partial(gate * p.C); }
    __device__ F* hidden_sum(int gate) const { return partial(p.sums + gate * p.R); }
    __device__ F* dhidden(int term) const { return partial(p.dhidden_layer + term * p.R); }
    __device__ F* dconv() const { return partial(p.dconv); }  // dws and dbs

    // Input of the second layer for a gate: the sum over the gate's terms. A single layer takes the pools.
    __device__ F second_input(int gate, int r) const {
        const bool apart = p.switches.gates() == 2;
        const int last = apart ? gate + 1 : p.switches.terms();
        F sum = 0;
        for (int term = apart ? gate : 0; term < last; ++term)
            sum += p.w1 ? activate(p.switches.activation, hidden(term)[r]) : pool(term)[r];
        return sum;
    }

    // This image in a tensor of x's shape, or null.
    template <class T> __device__ T* of(T* tensor) const { return tensor ? tensor + n * p.C * p.HW() : nullptr; }
};

}  // namespace cbam::cuda
