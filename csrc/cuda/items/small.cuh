// The items that do not read x. Their type parameter F is the accumulation type.
//
// Reads, Writes, Shared memory: mlp_forward.cuh, mlp_backward.cuh, parameters.cuh.
#pragma once

#include "mlp_backward.cuh"
#include "mlp_forward.cuh"
#include "order.h"
#include "parameters.cuh"

namespace cbam::cuda {

template <class F>
__device__ __forceinline__ void small_item(const Forward<F>& a, Kind kind, int64_t group, int index, F* shared) {
    const int C = a.p.C, R = a.p.R;
    const Images images(group, a.images, a.p.N);
    if (kind != Kind::gate) {
        const int first = kind == Kind::mlp ? 0 : index * kForwardUnits;
        hidden_units(a, images, first, kind == Kind::mlp ? R : min(R, first + kForwardUnits), shared);
    }
    if (kind != Kind::hidden) {
        const int step = gate_channels_at_once(lanes_for(R)), first = kind == Kind::mlp ? 0 : index * step;
        for (int gate = 0; gate < a.p.switches.gates(); ++gate)
            gate_channels(a, images, gate, first, kind == Kind::mlp ? C : min(C, first + step), shared);
    }
}

template <class F>
__device__ __forceinline__ void small_item(const Backward<F>& a, Kind kind, int64_t group, int index, F* shared) {
    const int C = a.p.C, R = a.p.R;
    if (kind == Kind::parameters) return parameter_gradients<F>(a.p, index, shared);
    if (kind == Kind::ws_gradients) {
        const int columns = 2 * a.p.k + 1;
        const int64_t n = group * a.images + index / columns;
        if (n < a.p.N) ws_gradients(a.p, a.dz ? a.dz + n * a.p.HW() : nullptr, n, index % columns, shared);
        return;
    }
    const Images images(group, a.images, a.p.N);
    if (kind == Kind::gate_gradients) return gate_gradients(a, images);
    if (kind != Kind::pools_backward) {
        const int first = kind == Kind::mlp_backward ? 0 : index * kBackwardUnits;
        for (int gate = 0; gate < a.p.switches.gates(); ++gate)
            hidden_backward(a, images, gate, first, kind == Kind::mlp_backward ? R : min(R, first + kBackwardUnits),
                            shared);
    }
    if (kind != Kind::hidden_backward) {
        const int first = kind == Kind::mlp_backward ? 0 : index * kPoolChannels;
        pools_backward(a, images, first, kind == Kind::mlp_backward ? C : min(C, first + kPoolChannels), shared);
    }
}

}  // namespace cbam::cuda
