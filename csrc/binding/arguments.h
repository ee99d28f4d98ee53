// Converts the arguments of an operator to the pointers of a Problem, for any device.
#pragma once

#include <array>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../problem.h"
#include "allocation.h"
#include "checks.h"

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

inline cbam::Dtype dtype_of(const Kind& kind) {
    if (kind.type == aoti_torch_dtype_float32()) return cbam::Dtype::f32;
    if (kind.type == aoti_torch_dtype_bfloat16()) return cbam::Dtype::bf16;
    if (kind.type == aoti_torch_dtype_float16()) return cbam::Dtype::f16;
    STD_TORCH_CHECK(kind.type == aoti_torch_dtype_float64(), "tensors must be float32, float64, float16 or bfloat16");
    return cbam::Dtype::f64;
}

// Of the accumulation type.
inline Kind sums_of(const Kind& kind) {
    return kind.of_type(kind.type == aoti_torch_dtype_float64() ? kind.type : aoti_torch_dtype_float32());
}

// The layout for x; cbam_fused/tensors.py has the same rule.
inline bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.stride(1) < x.stride(3); }

// Whether the 4-D tensor t is dense in channels_last.
inline bool is_dense_channels_last(const Tensor& t) {
    const IntHeaderOnlyArrayRef sizes = t.sizes(), strides = t.strides();
    int64_t expected = 1;
    for (int d : {1, 3, 2, 0}) {
        if (sizes[d] != 1 && strides[d] != expected) return false;
        expected *= sizes[d];
    }
    return true;
}

// t if it is dense in the layout, else a dense copy.
inline Tensor dense(const Tensor& t, bool channels_last) {
    if (!channels_last) return t.is_contiguous() ? t : torch::stable::contiguous(t);
    return is_dense_channels_last(t) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

inline const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// The parameters in the order of all signatures.
enum { W1, W2, WS, B1, B2, BS, kParameters };
using Parameters = std::array<const OptionalTensor*, kParameters>;

// Shapes, x and the parameters. It keeps the tensors alive, and dense, during the call.
struct Call {
    const Kind kind, sums_kind;  // of x, and of sums
    Tensor x;
    const Parameters given;
    // Contiguous copies in the accumulation type of parameters with another type or other strides. ws may also be in
    // channels_last.
    std::array<OptionalTensor, kParameters> converted;
    cbam::Problem p{};

    Call(const Tensor& x_, const Parameters& parameters, int64_t switches)
        : kind(x_), sums_kind(sums_of(kind)), x(checked_image(x_)), given(parameters) {
        p.dtype = dtype_of(kind);
        p.channels_last = is_channels_last(x_);
        x = dense(x_, p.channels_last);
        p.switches = cbam::Switches(switches);
        const bool single = p.switches.single;
        const IntHeaderOnlyArrayRef sizes = x.sizes();
        p.N = sizes[0], p.C = sizes[1], p.H = sizes[2], p.W = sizes[3];
        const OptionalTensor &w1 = *given[W1], &w2 = *given[W2], &ws = *given[WS];
        const OptionalTensor &b1 = *given[B1], &b2 = *given[B2], &bs = *given[BS];
        STD_TORCH_CHECK(w1.has_value() == (w2 || (single && w1)) && !(single && (w2 || b2)),
                        "w1 and w2 must be given together, or w1 alone with the switch 'single'");
        p.R = w1 && w1->dim() > 0 ? w1->size(0) : 0;
        p.channel = w1.has_value(), p.spatial = ws.has_value();
        p.switches.even_ties &= p.spatial || !p.switches.no_max;
        p.k = ws && ws->dim() == 4 ? ws->size(3) : 1;
        STD_TORCH_CHECK(!w1 || p.R > 0, "w1 must be (R, C) with R of at least 1");
        STD_TORCH_CHECK(p.k % 2 == 1, "ws must be (1, 2, k, k) with k odd");
        STD_TORCH_CHECK((w1 || (!b1 && !b2)) && (ws || !bs),
                        "b1 and b2 must be None without w1 and w2, and bs without ws");
        STD_TORCH_CHECK(!single || !p.channel || p.R == p.C, "w1 must be (C, C) without w2");
        check_parameter(kind, sums_kind, w1, {p.R, p.C}, "w1"), check_parameter(kind, sums_kind, b1, {p.R}, "b1");
        check_parameter(kind, sums_kind, w2, {p.C, p.R}, "w2"), check_parameter(kind, sums_kind, b2, {p.C}, "b2");
        check_parameter(kind, sums_kind, ws, {1, 2, p.k, p.k}, "ws"), check_parameter(kind, sums_kind, bs, {1}, "bs");
        p.x = x.const_data_ptr();
        p.w1 = use(W1), p.w2 = use(W2), p.b1 = use(B1), p.b2 = use(B2), p.bs = use(BS);
        p.ws = use(WS);
        p.ws_channels_last = ws && !converted[WS] && !ws->is_contiguous();
        if (single) second_alone(p.w1, p.b1, p.w2, p.b2);
        p.saved_hidden = p.w1 ? p.switches.terms() * p.R : 0;
    }

    // An uninitialised tensor like x, dense in its layout.
    Tensor like_x(const Tensor& t) const { return dense(checked_like(x, kind, t), p.channels_last); }
    OptionalTensor like_x(const OptionalTensor& t) const { return t ? OptionalTensor(like_x(*t)) : t; }

    // The data of a contiguous tensor with this many elements of the accumulation type.
    Tensor sums(const Tensor& t, int64_t numel) const {
        STD_TORCH_CHECK(t.numel() == numel && Kind(t) == sums_kind, "s, dg or dlogits does not fit x");
        return torch::stable::contiguous(t);
    }
    OptionalTensor sums(const OptionalTensor& t, int64_t numel) const {
        return t ? OptionalTensor(sums(*t, numel)) : t;
    }

    // For the kernels, a single layer is the second layer, whose input is the pools.
    template <class Pointer> static void second_alone(Pointer& w1, Pointer& b1, Pointer& w2, Pointer& b2) {
        w2 = w1, b2 = b1, w1 = b1 = nullptr;
    }

    Tensor new_bytes(int64_t count) const { return new_vector(kind.of_type(aoti_torch_dtype_uint8()), count); }

private:
    const void* use(int i) {
        if (!*given[i]) return nullptr;
        const Tensor& t = **given[i];
        const bool dense = t.is_contiguous() || (i == WS && is_dense_channels_last(t));
        if (dense && Kind(t).type == sums_kind.type) return t.const_data_ptr();
        const bool wide = p.dtype == cbam::Dtype::f64;
        converted[i] = torch::stable::new_empty(x, t.sizes(), wide ? ScalarType::Double : ScalarType::Float);
        torch::stable::copy_(*converted[i], t);
        return converted[i]->const_data_ptr();
    }
};

// Buffers for the gradients of the parameters, in the accumulation type.
struct Gradients {
    const Call& call;
    std::array<Tensor, kParameters> of;  // undefined (None in Python) for an absent parameter

    explicit Gradients(Call& call_) : call(call_) {
        cbam::Problem& p = call_.p;
        void** const pointers[] = {&p.dw1, &p.dw2, &p.dws, &p.db1, &p.db2, &p.dbs};
        for (int i = 0; i < kParameters; ++i) {
            if (!*call.given[i]) continue;
            of[i] = new_like(call.sums_kind, call.converted[i] ? *call.converted[i] : **call.given[i]);
            *pointers[i] = of[i].mutable_data_ptr();
        }
        if (p.switches.single) Call::second_alone(p.dw1, p.db1, p.dw2, p.db2);
    }

    // The results, with the dtypes and strides of the parameters.
    void finish() {
        for (int i = 0; i < kParameters; ++i) {
            if (!call.converted[i]) continue;
            Tensor result = torch::stable::empty_like(**call.given[i]);
            torch::stable::copy_(result, of[i]);
            of[i] = result;
        }
    }
};

// The saved tensors for an operator without the parameters; R follows from their size.
inline void set_gates(Call& call, const Tensor& saved) {
    cbam::Problem& p = call.p;
    p.channel = !p.switches.no_channel, p.spatial = true;
    p.saved_hidden = saved.dim() == 2 ? saved.size(1) - p.saved_size() : 0;
    p.R = p.saved_hidden / p.switches.terms();
    STD_TORCH_CHECK(p.R >= 0 && p.R * p.switches.terms() == p.saved_hidden, "saved is not what the forward left");
}

inline void set_saved(Call& call, const Tensor& saved) {
    cbam::Problem& p = call.p;
    check_left(call.sums_kind, saved, "saved");
    STD_TORCH_CHECK(saved.dim() == 2, "saved is not what the forward left");
    check_numel(saved, p.N * p.saved_size(), "saved");
    p.saved = const_cast<void*>(saved.const_data_ptr());
}

inline void set_saved(Call& call, const Tensor& saved, const Tensor& index) {
    set_saved(call, saved);
    check_index(call.p, call.kind, index);
    call.p.index = (int32_t*)const_cast<void*>(index.const_data_ptr());
}

inline std::tuple<Tensor, Tensor> new_saved(Call& call) {
    cbam::Problem& p = call.p;
    Tensor saved = new_matrix(call.sums_kind, p.N, p.saved_size());
    Tensor index = new_matrix(call.kind.of_type(aoti_torch_dtype_int32()), p.N, p.index_size());
    p.saved = saved.mutable_data_ptr(), p.index = (int32_t*)index.mutable_data_ptr();
    return {saved, index};
}

}  // namespace
