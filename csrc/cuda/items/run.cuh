// The operators for one dtype: choice of the access width and the driver.
#pragma once

#include <type_traits>

#include "dataflow.cuh"
#include "items.h"
#include "orders.h"
#include "parameters.h"
#include "phases.cuh"

namespace cbam::cuda {

template <Dtype dtype> using Element = std::conditional_t<
    dtype == Dtype::f32, float,
    std::conditional_t<dtype == Dtype::f64, double, std::conditional_t<dtype == Dtype::f16, __half, __nv_bfloat16>>>;

// The access widths that have code, in elements: 16 bytes; 8 bytes for half types; one element.
template <class T> constexpr int kAccesses[] = {kVector<T>, sizeof(T) == 2 ? 4 : 1, 1};

// Returns the widest access to which every row of every tensor of x's shape is aligned.
template <class T> int widest_access(const Problem& p) {
    uintptr_t starts = (p.channels_last ? p.C : p.HW()) * sizeof(T);
    for (const void* tensor : {p.x, p.residual, (const void*)p.y, p.dy, (const void*)p.dx, (const void*)p.dresidual})
        starts |= reinterpret_cast<uintptr_t>(tensor);
    for (int access : kAccesses<T>)
        if (starts % (access * sizeof(T)) == 0) return access;
    return 1;
}

template <class F> Order order_of(Operator op, const Forward<F>& a) { return forward_order(a); }
template <class F> Order order_of(Operator op, const Backward<F>& a) {
    return op == Operator::gate_grads ? products_order(a) : backward_order(a);
}

// Returns whether the dataflow driver ran. It has no even ties and no float64, and only the widest access.
template <class T, int V, bool channels_last, class Call>
bool run_call(Launcher& launch, Operator op, const Call& a, const Plan& plan, char* behind) {
    Order order = order_of(op, a);
    const bool even = a.p.switches.even_ties;
    if constexpr (V == kVector<T> && sizeof(T) < sizeof(double)) {
        if (plan.schedule == Schedule::dataflow && !even && op != Operator::gate_grads &&
            order.tickets() < UINT32_MAX / 2) {
            const int64_t group = a.images * a.p.C * a.p.HW() * sizeof(T) * (op == Operator::backward ? 2 : 1);
            order.spread(std::clamp<int64_t>(plan.window / std::max<int64_t>(group, 1), 1, order.groups));
            run_dataflow<T, V, channels_last>(launch, a, order, plan.blocks, reinterpret_cast<unsigned*>(behind));
            return true;
        }
    }
    if (even) run_phases<T, V, channels_last, true>(launch, a, order);
    else run_phases<T, V, channels_last, false>(launch, a, order);
    return false;
}

template <class T, int V, bool channels_last>
bool run_operator(Launcher& launch, Operator op, const Problem& p, const Plan& plan, void* workspace) {
    using F = Acc<T>;
    const Matrix matrix(p, V, sizeof(T));
    char* const base = static_cast<char*>(workspace);
    if (op == Operator::forward || op == Operator::apply_gates) {
        const Forward<F> a(p, matrix, op == Operator::forward, workspace);
        return run_call<T, V, channels_last>(launch, op, a, plan, base + a.bytes);
    } else {
        const Backward<F> a(p, matrix, op == Operator::gate_grads, workspace);
        return run_call<T, V, channels_last>(launch, op, a, plan, base + a.bytes);
    }
}

template <Dtype dtype>
cudaError_t run_of(Operator op, const Problem& p, const Plan& plan, void* workspace, cudaStream_t stream) {
    using T = Element<dtype>;
    Launcher launch{stream, plan.programmatic && plan.schedule == Schedule::staged};
    bool dataflow = false;
    const auto run = [&](auto access) {
        if (p.channels_last) dataflow = run_operator<T, access(), true>(launch, op, p, plan, workspace);
        else dataflow = run_operator<T, access(), false>(launch, op, p, plan, workspace);
    };
    if (p.N > 0) {
        switch (widest_access<T>(p)) {
            case kAccesses<T>[0]: run(std::integral_constant<int, kAccesses<T>[0]>()); break;
            case 1: run(std::integral_constant<int, 1>()); break;
            default: run(std::integral_constant<int, kAccesses<T>[1]>());
        }
    }
    // The dataflow driver has computed them.
    if (op != Operator::backward || dataflow || launch.status != cudaSuccess) return launch.status;
    return parameter_gradients(p, launch.programmatic, stream);
}

// The maximum over the access widths, because the addresses may not be known yet.
template <Dtype dtype> int64_t workspace_of(Operator op, const Problem& p, const Plan& plan) {
    using T = Element<dtype>;
    using F = Acc<T>;
    int64_t most = 0;
    for (int access : kAccesses<T>) {
        const Matrix matrix(p, access, sizeof(T));
        const auto bytes = [&](const auto& a) {
            const int64_t counters = plan.schedule == Schedule::dataflow ? 1 + order_of(op, a).counters() : 0;
            return a.bytes + counters * int64_t(sizeof(unsigned));
        };
        most = std::max(most, op == Operator::forward
                                  ? bytes(Forward<F>(p, matrix, true, nullptr))
                                  : bytes(Backward<F>(p, matrix, op == Operator::gate_grads, nullptr)));
    }
    return most;
}

}  // namespace cbam::cuda
