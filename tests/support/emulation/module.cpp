// The launchers and the emulation, for Python. driver.py gives them tensors.
#include "bindings.h"
#include "csrc/cuda/items/orders.h"
#include "csrc/cuda/launch.h"

namespace py = pybind11;
using namespace cbam;

namespace {

template <class Pointer> auto pointer(Pointer Problem::* member) {
    return [member](Problem& p, uintptr_t address) { p.*member = reinterpret_cast<Pointer>(address); };
}

void define_problem(py::module_& m) {
    py::enum_<Dtype>(m, "Dtype", py::module_local())
        .value("f32", Dtype::f32)
        .value("f64", Dtype::f64)
        .value("f16", Dtype::f16)
        .value("bf16", Dtype::bf16);
    py::class_<Problem> problem(m, "Problem", py::module_local());
    problem.def(py::init([] { return Problem{}; }));
#define FIELD(name) problem.def_readwrite(#name, &Problem::name)
    FIELD(dtype), FIELD(channels_last), FIELD(relu), FIELD(channel), FIELD(spatial), FIELD(ws_channels_last),
        FIELD(saved_hidden), FIELD(given);
    FIELD(N), FIELD(C), FIELD(H), FIELD(W), FIELD(R), FIELD(k);
#undef FIELD
    problem.def_property("switches", nullptr, [](Problem& p, int64_t code) { p.switches = Switches(code); });
    problem.def_property_readonly("terms", [](const Problem& p) { return p.switches.terms(); });
    problem.def("index_size", &Problem::index_size)
        .def("saved_size", &Problem::saved_size)
        .def("partial_size", &Problem::partial_size);
#define POINTER(name) problem.def_property(#name, nullptr, pointer(&Problem::name))
    POINTER(x), POINTER(residual), POINTER(y), POINTER(saved), POINTER(index), POINTER(s), POINTER(dy), POINTER(dx);
    POINTER(w1), POINTER(b1), POINTER(w2), POINTER(b2), POINTER(ws), POINTER(bs), POINTER(dresidual), POINTER(partial);
    POINTER(dw1), POINTER(db1), POINTER(dw2), POINTER(db2), POINTER(dws), POINTER(dbs), POINTER(dg), POINTER(ds);
#undef POINTER
}

void define_plans(py::module_& m) {
    py::enum_<cuda::Schedule>(m, "Schedule", py::module_local())
        .value("staged", cuda::Schedule::staged)
        .value("dataflow", cuda::Schedule::dataflow)
        .value("on_chip", cuda::Schedule::on_chip);
    py::class_<cuda::Device>(m, "Device", py::module_local())
        .def(py::init<int, int64_t, int64_t, bool>(), py::arg("multiprocessors"), py::arg("l2_bytes"),
             py::arg("shared_per_block"), py::arg("clusters"));
    py::class_<cuda::Plan>(m, "Plan", py::module_local())
        .def(py::init<cuda::Schedule, int, int, int64_t, bool>(), py::arg("schedule"), py::arg("cluster"),
             py::arg("blocks"), py::arg("window"), py::arg("programmatic"))
        .def_readonly("schedule", &cuda::Plan::schedule)
        .def_readonly("cluster", &cuda::Plan::cluster)
        .def_readonly("blocks", &cuda::Plan::blocks)
        .def_readonly("window", &cuda::Plan::window)
        .def_readonly("programmatic", &cuda::Plan::programmatic);
    const auto wanted = py::arg("wanted") = nullptr;
    m.def("plan_forward", &cuda::plan_forward, py::arg("problem"), py::arg("device"), wanted);
    m.def("plan_backward", &cuda::plan_backward, py::arg("problem"), py::arg("device"), wanted);
    m.def("forward_workspace", &cuda::forward_workspace);
    m.def("gate_grads_workspace", &cuda::gate_grads_workspace);
    m.def("backward_workspace", &cuda::backward_workspace);
}

// The order of a float32 call, as Python can ask for every ticket of it.
cuda::Order order_of(const Problem& p, bool forward, int vector, int64_t window) {
    const cuda::Matrix matrix(p, vector, sizeof(float));
    cuda::Order order = forward ? cuda::forward_order(cuda::Forward<float>(p, matrix, true, nullptr))
                                : cuda::backward_order(cuda::Backward<float>(p, matrix, false, nullptr));
    order.spread(window);
    return order;
}

void define_order(py::module_& m) {
    py::class_<cuda::Item>(m, "Item", py::module_local())
        .def_property_readonly("kind", [](const cuda::Item& item) { return int(item.kind); })
        .def_readonly("phase", &cuda::Item::phase)
        .def_readonly("group", &cuda::Item::group)
        .def_readonly("index", &cuda::Item::index);
    py::class_<cuda::Order>(m, "Order", py::module_local())
        .def_readonly("groups", &cuda::Order::groups)
        .def_readonly("phases", &cuda::Order::phases)
        .def_readonly("closing", &cuda::Order::closing)
        .def_readonly("last_items", &cuda::Order::last_items)
        .def("items", [](const cuda::Order& order, int phase) { return order.phase[phase].items; })
        .def("tickets", &cuda::Order::tickets)
        .def("item", &cuda::Order::item)
        .def("counters", &cuda::Order::counters)
        .def("counter", &cuda::Order::counter)
        .def("need", [](const cuda::Order& order, const cuda::Item& item) {
            const cuda::Need need = order.need(item);
            return std::pair(need.counter, need.count);
        });
    m.def("order_of", &order_of);
}

template <cudaError_t (*Launcher)(const Problem&, const cuda::Plan&, void*, cudaStream_t)>
int launch(const Problem& p, const cuda::Plan& plan, uintptr_t workspace) {
    return Launcher(p, plan, reinterpret_cast<void*>(workspace), nullptr);
}

}  // namespace

PYBIND11_MODULE(cbam_emulation, m) {
    emulation::define_emulation(m);
    define_problem(m);
    define_plans(m);
    define_order(m);
    m.def("has_clusters", &cuda::has_clusters);
    m.def("forward", &launch<cuda::forward>);
    m.def("gate_grads", &launch<cuda::gate_grads>);
    m.def("backward", &launch<cuda::backward>);
    m.def("apply_gates", [](const Problem& p) { return int(cuda::apply_gates(p, nullptr)); });
}
