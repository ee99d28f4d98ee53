// From the arguments of an operator to the pointers of a Problem, whichever device they are on.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../problem.h"
#include "checks.h"

namespace {

using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

inline cbam::Dtype dtype_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return cbam::Dtype::f32;
        case ScalarType::Double: return cbam::Dtype::f64;
        case ScalarType::Half: return cbam::Dtype::f16;
        case ScalarType::BFloat16: return cbam::Dtype::bf16;
        default: STD_TORCH_CHECK(false, "tensors must be float32, float64, float16 or bfloat16"); return {};
    }
}

inline ScalarType accumulation_type(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The layout that serves x; cbam_fused/tensors.py has the same rule.
inline bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.stride(1) < x.stride(3); }

// t itself if it is dense in the layout asked for, else a copy that is.
inline Tensor dense(const Tensor& t, bool channels_last) {
    if (!channels_last) return t.is_contiguous() ? t : torch::stable::contiguous(t);
    int64_t expected = 1;
    for (int d : {1, 3, 2, 0}) {
        if (t.size(d) != 1 && t.stride(d) != expected) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
        expected *= t.size(d);
    }
    return t;
}

inline const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

struct Parameters {
    OptionalTensor w1, b1, w2, b2, ws, bs;
};

// Shapes, x and the parameters; the tensors are kept alive, dense, for as long as the call lasts.
struct Call {
    Tensor x;
    Parameters given, held;  // held: contiguous, in the accumulation type
    cbam::Problem p{};

    Call(const Tensor& x_, const Parameters& parameters, int64_t switches)
        : x(dense(checked_image(x_), is_channels_last(x_))), given(parameters) {
        p.switches = cbam::Switches(switches);
        const bool single = p.switches.single;
        p.dtype = dtype_of(x);
        p.channels_last = is_channels_last(x_);
        p.N = x.size(0), p.C = x.size(1), p.H = x.size(2), p.W = x.size(3);
        STD_TORCH_CHECK(
            given.w1.has_value() == (given.w2 || (single && given.w1)) && !(single && (given.w2 || given.b2)),
            "w1 and w2 must be given together, or w1 alone with the switch 'single'");
        p.R = given.w1 && given.w1->dim() > 0 ? given.w1->size(0) : 0;
        p.channel = given.w1.has_value(), p.spatial = given.ws.has_value();
        p.switches.even_ties &= p.spatial || !p.switches.no_max;
        p.k = given.ws && given.ws->dim() == 4 ? given.ws->size(3) : 1;
        STD_TORCH_CHECK(!given.w1 || p.R > 0, "w1 must be (R, C) with R of at least 1");
        STD_TORCH_CHECK(p.k % 2 == 1, "ws must be (1, 2, k, k) with k odd");
        STD_TORCH_CHECK((given.w1 || (!given.b1 && !given.b2)) && (given.ws || !given.bs),
                        "b1 and b2 must be None without w1 and w2, and bs without ws");
        STD_TORCH_CHECK(!single || !p.channel || p.R == p.C, "w1 must be (C, C) without w2");
        check_parameter(x, given.w1, {p.R, p.C}, "w1"), check_parameter(x, given.b1, {p.R}, "b1");
        check_parameter(x, given.w2, {p.C, p.R}, "w2"), check_parameter(x, given.b2, {p.C}, "b2");
        check_parameter(x, given.ws, {1, 2, p.k, p.k}, "ws"), check_parameter(x, given.bs, {1}, "bs");
        p.x = x.const_data_ptr();
        p.w1 = hold(given.w1, held.w1), p.b1 = hold(given.b1, held.b1);
        p.w2 = hold(given.w2, held.w2), p.b2 = hold(given.b2, held.b2);
        if (single) second_alone(p.w1, p.b1, p.w2, p.b2);
        p.saved_hidden = p.w1 ? p.switches.terms() * p.R : 0;
        p.ws = hold(given.ws, held.ws), p.bs = hold(given.bs, held.bs);
    }

    // A tensor like x, dense in its layout.
    Tensor like_x(const Tensor& t) const { return dense(checked_like(x, t), p.channels_last); }
    OptionalTensor like_x(const OptionalTensor& t) const { return t ? OptionalTensor(like_x(*t)) : t; }

    // A contiguous tensor of this many sums.
    Tensor sums(const Tensor& t, int64_t numel) const {
        STD_TORCH_CHECK(t.numel() == numel && t.scalar_type() == accumulation_type(x) && same_device(x, t),
                        "s, dg or dlogits does not fit x");
        return torch::stable::contiguous(t);
    }
    OptionalTensor sums(const OptionalTensor& t, int64_t numel) const {
        return t ? OptionalTensor(sums(*t, numel)) : t;
    }

    Tensor new_sums(torch::headeronly::IntHeaderOnlyArrayRef shape) const {
        return torch::stable::new_empty(x, shape, accumulation_type(x));
    }

    // A single layer is, for the kernels, the second one, whose input is the pools.
    template <class Pointer> static void second_alone(Pointer& w1, Pointer& b1, Pointer& w2, Pointer& b2) {
        w2 = w1, b2 = b1, w1 = b1 = nullptr;
    }

    Tensor new_bytes(int64_t count) const { return torch::stable::new_empty(x, {count}, ScalarType::Byte); }

private:
    const void* hold(const OptionalTensor& given, OptionalTensor& held) const {
        if (!given) return nullptr;
        held = given;
        if (!given->is_contiguous() || given->scalar_type() != accumulation_type(x)) {
            held = new_sums(given->sizes());
            torch::stable::copy_(*held, *given);
        }
        return held->const_data_ptr();
    }
};

// Room for the gradients of the parameters, in the accumulation type.
struct Gradients {
    const Parameters& given;
    Tensor w1, b1, w2, b2, ws, bs;

    explicit Gradients(Call& call) : given(call.given) {
        auto room = [&](const OptionalTensor& parameter, void*& data) {
            Tensor t = parameter ? torch::stable::empty_like(*parameter) : call.new_sums({0});
            data = parameter ? t.mutable_data_ptr() : nullptr;
            return t;
        };
        cbam::Problem& p = call.p;
        w1 = room(call.held.w1, p.dw1), b1 = room(call.held.b1, p.db1);
        w2 = room(call.held.w2, p.dw2), b2 = room(call.held.b2, p.db2);
        ws = room(call.held.ws, p.dws), bs = room(call.held.bs, p.dbs);
        if (p.switches.single) Call::second_alone(p.dw1, p.db1, p.dw2, p.db2);
    }

    // The results in the type of the parameters and with their strides, which may be those of channels_last.
    void finish() {
        auto like = [](Tensor& sum, const OptionalTensor& parameter) {
            if (!parameter || (parameter->is_contiguous() && parameter->scalar_type() == sum.scalar_type())) return;
            Tensor result = torch::stable::empty_like(*parameter);
            torch::stable::copy_(result, sum);
            sum = result;
        };
        like(w1, given.w1), like(b1, given.b1), like(w2, given.w2);
        like(b2, given.b2), like(ws, given.ws), like(bs, given.bs);
    }
};

// What the forward left, for an operator that is not given the parameters: R is read from it.
inline void set_gates(Call& call, const Tensor& saved) {
    cbam::Problem& p = call.p;
    p.channel = !p.switches.no_channel, p.spatial = true;
    p.saved_hidden = saved.dim() == 2 ? saved.size(1) - p.saved_size() : 0;
    p.R = p.saved_hidden / p.switches.terms();
    STD_TORCH_CHECK(p.R >= 0 && p.R * p.switches.terms() == p.saved_hidden, "saved is not what the forward left");
}

inline void set_saved(Call& call, const Tensor& saved) {
    cbam::Problem& p = call.p;
    check_left(call.x, saved, accumulation_type(call.x), "saved");
    STD_TORCH_CHECK(saved.dim() == 2, "saved is not what the forward left");
    check_numel(saved, p.N * p.saved_size(), "saved");
    p.saved = const_cast<void*>(saved.const_data_ptr());
}

inline void set_saved(Call& call, const Tensor& saved, const Tensor& index) {
    set_saved(call, saved);
    check_index(call.p, call.x, index);
    call.p.index = (int32_t*)const_cast<void*>(index.const_data_ptr());
}

inline std::tuple<Tensor, Tensor> new_saved(Call& call) {
    cbam::Problem& p = call.p;
    Tensor saved = call.new_sums({p.N, p.saved_size()});
    Tensor index = torch::stable::new_empty(call.x, {p.N, p.index_size()}, ScalarType::Int);
    p.saved = saved.mutable_data_ptr(), p.index = (int32_t*)index.mutable_data_ptr();
    return {saved, index};
}

}  // namespace
