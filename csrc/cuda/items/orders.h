// The phases of each operator.
#pragma once

#include "mlp_backward.cuh"
#include "mlp_forward.cuh"
#include "order.h"
#include "parameters.cuh"

namespace cbam::cuda {

template <class F> Order forward_order(const Forward<F>& a) {
    const Problem& p = a.p;
    Order order{};
    order.groups = ceil_div(p.N, a.images);
    order.closing = -1;
    const auto add = [&](Kind kind, int64_t items, int behind) { order.add(kind, items, order.phases - 1, behind); };
    const int64_t strips = int64_t(a.images) * a.strip.tiles();
    if (a.gates) {
        if (p.channel) add(Kind::pool, int64_t(a.images) * a.pool.tiles(), 0);
        if (p.channel && p.C <= kOneBlock) {
            add(Kind::mlp, 1, 1);
        } else if (p.channel) {
            add(Kind::hidden, ceil_div(p.R, kForwardUnits), 1);
            add(Kind::gate, ceil_div(p.C, gate_channels_at_once(lanes_for(p.R))), 1);
        }
        if (p.spatial) add(Kind::maps, strips, 5);
    }
    if (p.spatial || p.y) add(Kind::apply, strips, 3);
    return order;
}

template <class F> Order products_order(const Backward<F>& a) {
    Order order{};
    order.groups = ceil_div(a.p.N, a.images);
    order.closing = -1;
    order.add(Kind::products, int64_t(a.images) * a.strip.tiles(), -1, 0);
    order.add(Kind::gate_gradients, 1, 0, 1);
    return order;
}

template <class F> Order backward_order(const Backward<F>& a) {
    const Problem& p = a.p;
    Order order{};
    order.groups = ceil_div(p.N, a.images);
    const auto add = [&](Kind kind, int64_t items, int behind) { order.add(kind, items, order.phases - 1, behind); };
    const int64_t strips = int64_t(a.images) * a.strip.tiles();
    if (!p.given) add(Kind::products, strips, 0);
    if (p.spatial) add(Kind::map_gradients, strips, 3);
    if (p.channel && p.C <= kOneBlock) {
        add(Kind::mlp_backward, 1, 1);
    } else if (p.channel) {
        add(Kind::hidden_backward, ceil_div(p.R, kBackwardUnits), 1);
        add(Kind::pools_backward, ceil_div(p.C, kPoolChannels), 1);
    }
    order.closing = order.phases - 1;
    add(Kind::input_gradient, strips, 5);
    if (p.spatial) {
        // It needs only dz, but waits for the closing phase and replaces it: when it has ended, so have both.
        order.add(Kind::ws_gradients, int64_t(a.images) * (2 * p.k + 1), order.closing, 0);
        order.closing = order.phases - 1;
    }
    order.last_items = ParameterItems(p).count();
    return order;
}

}  // namespace cbam::cuda
