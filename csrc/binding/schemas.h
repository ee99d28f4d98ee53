// The schemas of the operators, for every device.
#pragma once

#include <torch/csrc/stable/library.h>

#define CBAM_PARAMETERS "Tensor? w1, Tensor? w2, Tensor? ws, Tensor? b1, Tensor? b2, Tensor? bs"

namespace {

inline void define(torch::stable::detail::StableLibrary& m) {
    m.def("forward(Tensor x, " CBAM_PARAMETERS
          ", Tensor? residual, bool relu, int switches) -> (Tensor, Tensor, Tensor)");
    m.def("backward(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor index, " CBAM_PARAMETERS
          ", int switches) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("gates_forward(Tensor x, " CBAM_PARAMETERS ", int switches) -> (Tensor, Tensor)");
    m.def("apply_gates(Tensor x, Tensor saved, Tensor s, Tensor? residual, bool relu, int switches) -> Tensor");
    m.def(
        "gate_grads(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor s, int switches) -> (Tensor, Tensor, Tensor)");
    m.def(
        "backward_from_gate_grads(Tensor? dy, Tensor? s, Tensor? dg, Tensor? dlogits, Tensor x, Tensor saved, Tensor "
        "index, " CBAM_PARAMETERS ", int switches) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("cpu_capability() -> str");
}

}  // namespace
