// Operator schemas and their CPU implementation, on LibTorch's stable ABI. Arguments are checked in
// cbam_fused/functional.py; cbam_fused/_ops.py says what each tensor holds and how results are laid out.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/kernels.h"

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The widest instruction set that this processor and ATEN_CPU_CAPABILITY (default, avx2, avx512) allow; avx512 leaves
// out the extension for bfloat16, which is used where nothing is said.
const cbam::Kernels& kernels() {
    static const cbam::Kernels& chosen = []() -> const cbam::Kernels& {
#if defined(__x86_64__)
        const char* limit = getenv("ATEN_CPU_CAPABILITY");
        const bool generic = limit && !strcmp(limit, "default");
        const bool avx2 = limit && !strcmp(limit, "avx2");
        const bool has_avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (has_avx512 && !limit && __builtin_cpu_supports("avx512bf16")) return cbam::kernels_avx512bf16();
        if (has_avx512 && !generic && !avx2) return cbam::kernels_avx512();
        if (has_avx2 && !generic) return cbam::kernels_avx2();
#endif
        return cbam::kernels_generic();
    }();
    return chosen;
}

std::string cpu_capability() { return kernels().name; }

cbam::Dtype dtype_of(const Tensor& x) {
    switch (x.scalar_type()) {
        case ScalarType::Float: return cbam::Dtype::f32;
        case ScalarType::Double: return cbam::Dtype::f64;
        case ScalarType::Half: return cbam::Dtype::f16;
        case ScalarType::BFloat16: return cbam::Dtype::bf16;
        default: STD_TORCH_CHECK(false, "x must be float32, float64, float16 or bfloat16"); return {};
    }
}

ScalarType accumulation_type(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The layout that serves x; cbam_fused/_ops.py has the same rule.
bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.stride(1) < x.stride(3); }

// t itself if it is dense in the layout asked for, else a copy that is.
Tensor dense(const Tensor& t, bool channels_last) {
    if (!channels_last) return t.is_contiguous() ? t : torch::stable::contiguous(t);
    int64_t expected = 1;
    for (int d : {1, 3, 2, 0}) {
        if (t.size(d) != 1 && t.stride(d) != expected) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
        expected *= t.size(d);
    }
    return t;
}

OptionalTensor dense(const OptionalTensor& t, bool channels_last) {
    return t ? OptionalTensor(dense(*t, channels_last)) : t;
}

const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// Shapes, inputs and parameters; the tensors are kept alive, contiguous, for as long as the call lasts.
struct Call {
    Tensor x, w1, w2, ws;
    OptionalTensor b1, b2, bs;
    cbam::Problem p{};

    Call(const Tensor& x_, const Tensor& w1_, const OptionalTensor& b1_, const Tensor& w2_, const OptionalTensor& b2_,
         const Tensor& ws_, const OptionalTensor& bs_)
        : x(dense(x_, is_channels_last(x_))),
          w1(torch::stable::contiguous(w1_)),
          w2(torch::stable::contiguous(w2_)),
          ws(torch::stable::contiguous(ws_)),
          b1(b1_),
          b2(b2_),
          bs(bs_) {
        p.dtype = dtype_of(x);
        p.channels_last = is_channels_last(x_);
        p.N = x.size(0), p.C = x.size(1), p.H = x.size(2), p.W = x.size(3);
        p.R = w1.size(0), p.k = ws.size(3);
        p.x = x.const_data_ptr();
        p.w1 = w1.const_data_ptr(), p.w2 = w2.const_data_ptr(), p.ws = ws.const_data_ptr();
        for (OptionalTensor* b : {&b1, &b2, &bs})
            if (*b) *b = torch::stable::contiguous(**b);
        p.b1 = pointer(b1), p.b2 = pointer(b2), p.bs = pointer(bs);
    }

    // run(first image, last image, scratch) over all images; each thread has a scratch of its own.
    template <class Run> void each_image(Run run) {
        const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), p.N);
        const int64_t bytes = kernels().scratch_size(p);
        const Tensor workspace = torch::stable::new_empty(x, {threads * bytes + 64}, ScalarType::Byte);
        char* scratch = (char*)(((uintptr_t)workspace.mutable_data_ptr() + 63) & ~uintptr_t(63));
        torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
            for (int64_t t = first; t < last; ++t) run(p.N * t / threads, p.N * (t + 1) / threads, scratch + t * bytes);
        });
    }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& w1, const OptionalTensor& b1,
                                           const Tensor& w2, const OptionalTensor& b2, const Tensor& ws,
                                           const OptionalTensor& bs, const OptionalTensor& residual, bool relu) {
    Call call(x, w1, b1, w2, b2, ws, bs);
    cbam::Problem& p = call.p;
    const OptionalTensor dense_residual = dense(residual, p.channels_last);
    Tensor y = torch::stable::empty_like(call.x);
    Tensor saved = torch::stable::new_empty(x, {p.N, p.saved_size()}, accumulation_type(x));
    Tensor index = torch::stable::new_empty(x, {p.N, p.C + p.HW()}, ScalarType::Int);
    p.residual = pointer(dense_residual);
    p.relu = relu;
    p.y = y.mutable_data_ptr(), p.saved = saved.mutable_data_ptr(), p.index = (int32_t*)index.mutable_data_ptr();
    call.each_image([&](int64_t first, int64_t last, void* scratch) { kernels().forward(p, first, last, scratch); });
    return {y, saved, index};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& y, const Tensor& saved, const Tensor& index,
    const Tensor& w1, const OptionalTensor& b1, const Tensor& w2, const OptionalTensor& b2, const Tensor& ws,
    const OptionalTensor& bs) {
    Call call(x, w1, b1, w2, b2, ws, bs);
    cbam::Problem& p = call.p;
    const Tensor dense_dy = dense(dy, p.channels_last);
    const OptionalTensor dense_y = dense(y, p.channels_last);
    auto gradient = [&](const OptionalTensor& t) {
        return t ? torch::stable::empty_like(*t) : torch::stable::new_empty(saved, {0});
    };
    Tensor dx = gradient(call.x), dresidual = y ? gradient(call.x) : torch::stable::new_empty(x, {0});
    Tensor dw1 = gradient(call.w1), dw2 = gradient(call.w2), dws = gradient(call.ws);
    Tensor db1 = gradient(call.b1), db2 = gradient(call.b2), dbs = gradient(call.bs);
    const Tensor partial = torch::stable::new_empty(saved, {p.N, p.partial_size()});
    p.relu = y.has_value();
    p.dy = dense_dy.const_data_ptr(), p.y = const_cast<void*>(pointer(dense_y));
    p.saved = saved.data_ptr(), p.index = (int32_t*)index.data_ptr(), p.partial = partial.mutable_data_ptr();
    p.dx = dx.mutable_data_ptr(), p.dresidual = y ? dresidual.mutable_data_ptr() : nullptr;
    p.dw1 = dw1.mutable_data_ptr(), p.dw2 = dw2.mutable_data_ptr(), p.dws = dws.mutable_data_ptr();
    p.db1 = b1 ? db1.mutable_data_ptr() : nullptr, p.db2 = b2 ? db2.mutable_data_ptr() : nullptr;
    p.dbs = bs ? dbs.mutable_data_ptr() : nullptr;
    call.each_image([&](int64_t first, int64_t last, void* scratch) { kernels().backward(p, first, last, scratch); });
    const int64_t rows_a_thread = 1 + 65536 / (p.C * std::max<int64_t>(p.N, 1));
    torch::stable::parallel_for(0, p.R + p.C, rows_a_thread,
                                [&](int64_t first, int64_t last) { kernels().backward_parameters(p, first, last); });
    // A parameter may have the strides of channels_last, and its gradient must have them too.
    auto strided_like = [](const Tensor& gradient, const Tensor& parameter) {
        if (parameter.is_contiguous()) return gradient;
        Tensor strided = torch::stable::empty_like(parameter);
        return torch::stable::copy_(strided, gradient);
    };
    return {dx, dresidual, strided_like(dw1, w1), db1, strided_like(dw2, w2), db2, strided_like(dws, ws), dbs};
}

}  // namespace

STABLE_TORCH_LIBRARY(cbam_fused, m) {
    m.def(
        "forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor ws, Tensor? bs, Tensor? residual, "
        "bool relu) -> (Tensor, Tensor, Tensor)");
    m.def(
        "backward(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor index, Tensor w1, Tensor? b1, Tensor w2, "
        "Tensor? b2, Tensor ws, Tensor? bs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(cbam_fused, CPU, m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
}

STABLE_TORCH_LIBRARY_IMPL(cbam_fused, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
