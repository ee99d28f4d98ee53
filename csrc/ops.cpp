// Operator schemas and their CPU implementation, on LibTorch's stable ABI. Arguments are checked in
// cbam_fused/functional.py; cbam_fused/_ops.py says what each tensor holds and how results are laid out.
#include <string>
#include <tuple>

#include "call.h"

namespace {

std::string cpu_capability() { return kernels().name; }

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
    }

    // The results in the type of the parameters and with their strides, which may be those of channels_last.
    Gradients& finish() {
        auto like = [](Tensor& sum, const OptionalTensor& parameter) {
            if (!parameter || (parameter->is_contiguous() && parameter->scalar_type() == sum.scalar_type())) return;
            Tensor result = torch::stable::empty_like(*parameter);
            torch::stable::copy_(result, sum);
            sum = result;
        };
        like(w1, given.w1), like(b1, given.b1), like(w2, given.w2);
        like(b2, given.b2), like(ws, given.ws), like(bs, given.bs);
        return *this;
    }
};

// What the forward left. R is read from it, since not every operator is given w1.
void set_saved(cbam::Problem& p, const Tensor& saved) {
    check_type(saved, p.dtype == cbam::Dtype::f64 ? ScalarType::Double : ScalarType::Float, "saved");
    STD_TORCH_CHECK(saved.dim() == 2, "saved is not what the forward left");
    const int64_t R = (saved.size(1) - 3 * p.C - 3 * p.HW()) / 2;
    STD_TORCH_CHECK(R >= 0 && (p.R == 0 || p.R == R), "saved is not what the forward left");
    p.R = R;
    check_numel(saved, p.N * p.saved_size(), "saved");
    p.saved = const_cast<void*>(saved.const_data_ptr());
}

void set_saved(cbam::Problem& p, const Tensor& saved, const Tensor& index) {
    set_saved(p, saved);
    check_index(p, index);
    p.index = (int32_t*)const_cast<void*>(index.const_data_ptr());
}

std::tuple<Tensor, Tensor> new_saved(Call& call) {
    cbam::Problem& p = call.p;
    Tensor saved = call.new_sums({p.N, p.saved_size()});
    Tensor index = torch::stable::new_empty(call.x, {p.N, p.C + p.HW()}, ScalarType::Int);
    p.saved = saved.mutable_data_ptr(), p.index = (int32_t*)index.mutable_data_ptr();
    return {saved, index};
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1,
                                           const OptionalTensor& w2, const OptionalTensor& b2, const OptionalTensor& ws,
                                           const OptionalTensor& bs, const OptionalTensor& residual, bool relu) {
    Call call(x, {w1, b1, w2, b2, ws, bs});
    cbam::Problem& p = call.p;
    const OptionalTensor dense_residual = call.like_x(residual);
    Tensor y = torch::stable::empty_like(call.x);
    auto [saved, index] = new_saved(call);
    p.residual = pointer(dense_residual);
    p.relu = relu;
    p.y = y.mutable_data_ptr();
    call.run(kernels().forward(p));
    return {y, saved, index};
}

std::tuple<Tensor, Tensor> attend(const Tensor& x, const OptionalTensor& w1, const OptionalTensor& b1,
                                  const OptionalTensor& w2, const OptionalTensor& b2, const OptionalTensor& ws,
                                  const OptionalTensor& bs) {
    Call call(x, {w1, b1, w2, b2, ws, bs});
    auto result = new_saved(call);
    call.run(kernels().forward(call.p));
    return result;
}

Tensor apply(const Tensor& x, const Tensor& saved, const Tensor& s, const OptionalTensor& residual, bool relu) {
    Call call(x, {});
    cbam::Problem& p = call.p;
    const Tensor dense_s = call.sums(s, p.N * p.HW());
    const OptionalTensor dense_residual = call.like_x(residual);
    Tensor y = torch::stable::empty_like(call.x);
    set_saved(p, saved);
    p.residual = pointer(dense_residual), p.relu = relu;
    p.s = dense_s.const_data_ptr(), p.y = y.mutable_data_ptr();
    call.run(kernels().apply(p));
    return y;
}

std::tuple<Tensor, Tensor, Tensor> products(const Tensor& dy, const Tensor& x, const OptionalTensor& y,
                                            const Tensor& saved, const Tensor& s) {
    Call call(x, {});
    cbam::Problem& p = call.p;
    const Tensor dense_dy = call.like_x(dy), dense_s = call.sums(s, p.N * p.HW());
    const OptionalTensor dense_y = call.like_x(y);
    Tensor dg = call.new_sums({p.N, p.C}), ds = call.new_sums({p.N, 1, p.H, p.W});
    Tensor dresidual = y ? torch::stable::empty_like(call.x) : torch::stable::new_empty(x, {0});
    set_saved(p, saved);
    p.dy = dense_dy.const_data_ptr(), p.s = dense_s.const_data_ptr();
    p.relu = y.has_value(), p.y = const_cast<void*>(pointer(dense_y));
    p.dg = dg.mutable_data_ptr(), p.ds = ds.mutable_data_ptr();
    p.dresidual = y ? dresidual.mutable_data_ptr() : nullptr;
    call.run(kernels().products(p));
    return {dg, ds, dresidual};
}

// What both kinds of backward end with: the images' parts of the gradients, and their sums.
Gradients run_backward(Call& call) {
    cbam::Problem& p = call.p;
    Gradients gradients(call);
    const Tensor workspace = call.new_workspace(p.N * p.partial_size());
    p.partial = call.behind_scratch(workspace);
    call.run(kernels().backward(p), workspace);
    const int64_t rows_a_thread = 1 + 65536 / (p.C * std::max<int64_t>(p.N, 1));
    torch::stable::parallel_for(0, p.R + p.C, rows_a_thread,
                                [&](int64_t first, int64_t last) { kernels().backward_parameters(p, first, last); });
    return gradients.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& y, const Tensor& saved, const Tensor& index,
    const OptionalTensor& w1, const OptionalTensor& b1, const OptionalTensor& w2, const OptionalTensor& b2,
    const OptionalTensor& ws, const OptionalTensor& bs, bool even_ties) {
    Call call(x, {w1, b1, w2, b2, ws, bs});
    cbam::Problem& p = call.p;
    p.even_ties = even_ties;
    const Tensor dense_dy = call.like_x(dy);
    const OptionalTensor dense_y = call.like_x(y);
    Tensor dx = torch::stable::empty_like(call.x);
    Tensor dresidual = y ? torch::stable::empty_like(call.x) : torch::stable::new_empty(x, {0});
    set_saved(p, saved, index);
    p.dy = dense_dy.const_data_ptr(), p.dx = dx.mutable_data_ptr();
    p.relu = y.has_value(), p.y = const_cast<void*>(pointer(dense_y));
    p.dresidual = y ? dresidual.mutable_data_ptr() : nullptr;
    const Gradients d = run_backward(call);
    return {dx, dresidual, d.w1, d.b1, d.w2, d.b2, d.ws, d.bs};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_gates(
    const OptionalTensor& dy, const OptionalTensor& s, const OptionalTensor& dg, const OptionalTensor& dlogits,
    const Tensor& x, const Tensor& saved, const Tensor& index, const OptionalTensor& w1, const OptionalTensor& b1,
    const OptionalTensor& w2, const OptionalTensor& b2, const OptionalTensor& ws, const OptionalTensor& bs,
    bool even_ties) {
    Call call(x, {w1, b1, w2, b2, ws, bs});
    cbam::Problem& p = call.p;
    p.even_ties = even_ties;
    const OptionalTensor dense_dy = call.like_x(dy);
    const OptionalTensor dense_s = call.sums(s, p.N * p.HW()), dense_dg = call.sums(dg, p.N * p.C),
                         dense_dlogits = call.sums(dlogits, p.N * p.HW());
    Tensor dx = torch::stable::empty_like(call.x);
    set_saved(p, saved, index);
    p.dy = pointer(dense_dy), p.s = pointer(dense_s), p.dx = dx.mutable_data_ptr();
    p.dg = const_cast<void*>(pointer(dense_dg)), p.ds = const_cast<void*>(pointer(dense_dlogits));
    p.given = true;
    const Gradients d = run_backward(call);
    return {dx, d.w1, d.b1, d.w2, d.b2, d.ws, d.bs};
}

}  // namespace

#define CBAM_PARAMETERS "Tensor? w1, Tensor? b1, Tensor? w2, Tensor? b2, Tensor? ws, Tensor? bs"

STABLE_TORCH_LIBRARY(cbam_fused, m) {
    m.def("forward(Tensor x, " CBAM_PARAMETERS ", Tensor? residual, bool relu) -> (Tensor, Tensor, Tensor)");
    m.def("backward(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor index, " CBAM_PARAMETERS
          ", bool even_ties) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("attend(Tensor x, " CBAM_PARAMETERS ") -> (Tensor, Tensor)");
    m.def("apply(Tensor x, Tensor saved, Tensor s, Tensor? residual, bool relu) -> Tensor");
    m.def("products(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor s) -> (Tensor, Tensor, Tensor)");
    m.def(
        "backward_gates(Tensor? dy, Tensor? s, Tensor? dg, Tensor? dlogits, Tensor x, Tensor saved, Tensor "
        "index, " CBAM_PARAMETERS ", bool even_ties) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("cpu_capability() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(cbam_fused, CPU, m) {
    m.impl("forward", TORCH_BOX(&forward));
    m.impl("backward", TORCH_BOX(&backward));
    m.impl("attend", TORCH_BOX(&attend));
    m.impl("apply", TORCH_BOX(&apply));
    m.impl("products", TORCH_BOX(&products));
    m.impl("backward_gates", TORCH_BOX(&backward_gates));
}

STABLE_TORCH_LIBRARY_IMPL(cbam_fused, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
