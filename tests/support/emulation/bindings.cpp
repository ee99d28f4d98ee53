#include "bindings.h"

#include <dlfcn.h>
#include <pybind11/stl.h>
#include <string.h>

#include "checker.h"

namespace py = pybind11;
using namespace py::literals;

namespace emulation {

namespace {

// Where in this file some code is, as addr2line wants it.
size_t offset_of(const void* code) {
    Dl_info module{};
    return code && dladdr(code, &module) ? uintptr_t(code) - uintptr_t(module.dli_fbase) : 0;
}

py::dict traffic_of(const LaunchTraffic& launch) {
    py::dict buffers;
    for (const BufferTraffic& t : launch.buffers)
        buffers[t.name.c_str()] = py::make_tuple(t.read, t.written, t.distinct, t.requests, t.sectors);
    py::dict counters;
    for (const CounterValue& c : launch.counters) counters[py::make_tuple(c.buffer, c.index)] = c.value;
    return py::dict("kernel"_a = offset_of(launch.kernel), "shared_bytes"_a = launch.shared_bytes,
                    "buffers"_a = buffers, "counters"_a = counters, "shared_requests"_a = launch.shared_requests,
                    "bank_conflicts"_a = launch.bank_conflicts);
}

}  // namespace

void define_emulation(py::module_& m) {
    m.def("add_buffer", [](std::string name, size_t bytes, uintptr_t source, bool writable) {
        return uintptr_t(add_buffer(std::move(name), bytes, reinterpret_cast<const void*>(source), writable).begin);
    });
    m.def("remove_buffers", &remove_buffers);
    m.def("copy_buffer", [](uintptr_t address, size_t bytes, uintptr_t to) {
        memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(address), bytes);
    });
    m.def("check_written", [](uintptr_t address) { check_written(nearest_buffer(address)); });
    m.def("clear_traffic", [] { traffic.clear(); });
    m.def("traffic", [] {
        py::list result;
        for (const LaunchTraffic& launch : traffic) result.append(traffic_of(launch));
        return result;
    });
    m.def("set_seed", [](uint64_t value) { seed = value; });
    m.def("set_resident", [](uint32_t blocks) { resident = blocks; });
    m.def("set_ptx_version", [](int value) { ptx_version = value; });

    // Its arguments: what kind, what happened, and where: the offset in this file of the instruction, or 0.
    static py::handle type = py::exception<Error>(m, "LaunchError").release();
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            std::rethrow_exception(p);
        } catch (const Error& error) {
            PyErr_SetObject(type.ptr(), py::make_tuple(error.kind, error.message, offset_of(error.code)).ptr());
        }
    });
}

}  // namespace emulation
