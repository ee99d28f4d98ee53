// The six operators, on LibTorch's stable ABI, for a device with the kernels Device::forward, apply_gates, gate_grads
// and backward, functions of a Call. checks.h checks the arguments; cbam_fused/ops/registry.py documents the contents
// and layouts of the tensors.
#pragma once

#include "arguments.h"

// The operators' namespace, as in cbam_fused/_ops.py. Hugging Face's kernel-builder defines its own.
#ifndef TORCH_EXTENSION_NAME
#define TORCH_EXTENSION_NAME cbam_fused
#endif
// Torch's macros paste the given name without expanding it.
#define CBAM_EXPANDED(macro, ...) macro(__VA_ARGS__)

namespace {

template <class Device> struct Operators {
    static std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& w1,
                                                      const OptionalTensor& w2, const OptionalTensor& ws,
                                                      const OptionalTensor& b1, const OptionalTensor& b2,
                                                      const OptionalTensor& bs, const OptionalTensor& residual,
                                                      bool relu, int64_t switches) {
        const Device device(x);
        Call call(x, {&w1, &w2, &ws, &b1, &b2, &bs}, switches);
        cbam::Problem& p = call.p;
        const OptionalTensor dense_residual = call.like_x(residual);
        Tensor y = new_like(call.kind, call.x);
        auto [saved, index] = new_saved(call);
        p.residual = pointer(dense_residual);
        p.relu = relu;
        p.y = y.mutable_data_ptr();
        device.forward(call);
        return {y, saved, index};
    }

    static std::tuple<Tensor, Tensor> gates_forward(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& w2,
                                                    const OptionalTensor& ws, const OptionalTensor& b1,
                                                    const OptionalTensor& b2, const OptionalTensor& bs,
                                                    int64_t switches) {
        const Device device(x);
        Call call(x, {&w1, &w2, &ws, &b1, &b2, &bs}, switches);
        auto result = new_saved(call);
        device.forward(call);
        return result;
    }

    static Tensor apply_gates(const Tensor& x, const Tensor& saved, const Tensor& s, const OptionalTensor& residual,
                              bool relu, int64_t switches) {
        const Device device(x);
        Call call(x, none(), switches);
        cbam::Problem& p = call.p;
        const Tensor dense_s = call.sums(s, p.N * p.HW());
        const OptionalTensor dense_residual = call.like_x(residual);
        Tensor y = new_like(call.kind, call.x);
        set_gates(call, saved);
        set_saved(call, saved);
        p.residual = pointer(dense_residual), p.relu = relu;
        p.s = dense_s.const_data_ptr(), p.y = y.mutable_data_ptr();
        device.apply_gates(call);
        return y;
    }

    static std::tuple<Tensor, Tensor, Tensor> gate_grads(const Tensor& dy, const Tensor& x, const OptionalTensor& y,
                                                         const Tensor& saved, const Tensor& s, int64_t switches) {
        const Device device(x);
        Call call(x, none(), switches);
        cbam::Problem& p = call.p;
        const Tensor dense_dy = call.like_x(dy), dense_s = call.sums(s, p.N * p.HW());
        const OptionalTensor dense_y = call.like_x(y);
        Tensor dg = new_matrix(call.sums_kind, p.N, p.C);
        const int64_t map[] = {p.N, 1, p.H, p.W}, strides[] = {p.HW(), p.HW(), p.W, 1};
        Tensor ds = new_strided(call.sums_kind, {map, 4}, {strides, 4});
        Tensor dresidual = y ? new_like(call.kind, call.x) : Tensor();
        set_gates(call, saved);
        set_saved(call, saved);
        p.dy = dense_dy.const_data_ptr(), p.s = dense_s.const_data_ptr();
        p.relu = y.has_value(), p.y = const_cast<void*>(pointer(dense_y));
        p.dg = dg.mutable_data_ptr(), p.ds = ds.mutable_data_ptr();
        p.dresidual = y ? dresidual.mutable_data_ptr() : nullptr;
        device.gate_grads(call);
        return {dg, ds, dresidual};
    }

    static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
        const Tensor& dy, const Tensor& x, const OptionalTensor& y, const Tensor& saved, const Tensor& index,
        const OptionalTensor& w1, const OptionalTensor& w2, const OptionalTensor& ws, const OptionalTensor& b1,
        const OptionalTensor& b2, const OptionalTensor& bs, int64_t switches) {
        const Device device(x);
        Call call(x, {&w1, &w2, &ws, &b1, &b2, &bs}, switches);
        cbam::Problem& p = call.p;
        const Tensor dense_dy = call.like_x(dy);
        const OptionalTensor dense_y = call.like_x(y);
        Tensor dx = new_like(call.kind, call.x);
        Tensor dresidual = y ? new_like(call.kind, call.x) : Tensor();
        set_saved(call, saved, index);
        p.dy = dense_dy.const_data_ptr(), p.dx = dx.mutable_data_ptr();
        p.relu = y.has_value(), p.y = const_cast<void*>(pointer(dense_y));
        p.dresidual = y ? dresidual.mutable_data_ptr() : nullptr;
        Gradients d(call);
        device.backward(call);
        d.finish();
        return {dx, d.of[W1], d.of[W2], d.of[WS], d.of[B1], d.of[B2], d.of[BS], dresidual};
    }

    static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_from_gate_grads(
        const OptionalTensor& dy, const OptionalTensor& s, const OptionalTensor& dg, const OptionalTensor& dlogits,
        const Tensor& x, const Tensor& saved, const Tensor& index, const OptionalTensor& w1, const OptionalTensor& w2,
        const OptionalTensor& ws, const OptionalTensor& b1, const OptionalTensor& b2, const OptionalTensor& bs,
        int64_t switches) {
        const Device device(x);
        Call call(x, {&w1, &w2, &ws, &b1, &b2, &bs}, switches);
        cbam::Problem& p = call.p;
        const OptionalTensor dense_dy = call.like_x(dy);
        const OptionalTensor dense_s = call.sums(s, p.N * p.HW()), dense_dg = call.sums(dg, p.N * p.C),
                             dense_dlogits = call.sums(dlogits, p.N * p.HW());
        Tensor dx = new_like(call.kind, call.x);
        set_saved(call, saved, index);
        p.dy = pointer(dense_dy), p.s = pointer(dense_s), p.dx = dx.mutable_data_ptr();
        p.dg = const_cast<void*>(pointer(dense_dg)), p.ds = const_cast<void*>(pointer(dense_dlogits));
        p.given = true;
        Gradients d(call);
        device.backward(call);
        d.finish();
        return {dx, d.of[W1], d.of[W2], d.of[WS], d.of[B1], d.of[B2], d.of[BS]};
    }

    // For an operator without the parameters.
    static Parameters none() {
        static const OptionalTensor absent;
        return {&absent, &absent, &absent, &absent, &absent, &absent};
    }

    static void implement(torch::stable::detail::StableLibrary& m) {
        m.impl("forward", TORCH_BOX(&Operators::forward));
        m.impl("backward", TORCH_BOX(&Operators::backward));
        m.impl("gates_forward", TORCH_BOX(&Operators::gates_forward));
        m.impl("apply_gates", TORCH_BOX(&Operators::apply_gates));
        m.impl("gate_grads", TORCH_BOX(&Operators::gate_grads));
        m.impl("backward_from_gate_grads", TORCH_BOX(&Operators::backward_from_gate_grads));
    }
};

}  // namespace
