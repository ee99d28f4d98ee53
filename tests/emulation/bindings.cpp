#include "bindings.h"

#include <dlfcn.h>
#include <pybind11/stl.h>
#include <string.h>

#include "memory.h"
#include "scheduler.h"

namespace py = pybind11;

namespace emulation {

void define_emulation(py::module_& m) {
    m.def("add_buffer", [](std::string name, size_t bytes, uintptr_t source, bool writable) {
        return uintptr_t(add_buffer(std::move(name), bytes, reinterpret_cast<const void*>(source), writable).begin);
    });
    m.def("remove_buffers", &remove_buffers);
    m.def("copy_buffer", [](uintptr_t address, size_t bytes, uintptr_t to) {
        memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(address), bytes);
    });
    m.def("set_seed", [](uint64_t value) { seed = value; });

    // Its arguments: what kind, what happened, and where: the offset in this file of the instruction, or 0.
    static py::handle type = py::exception<Error>(m, "LaunchError").release();
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            std::rethrow_exception(p);
        } catch (const Error& error) {
            Dl_info module{};
            const bool found = error.code && dladdr(error.code, &module);
            const size_t offset = found ? uintptr_t(error.code) - uintptr_t(module.dli_fbase) : 0;
            PyErr_SetObject(type.ptr(), py::make_tuple(error.kind, error.message, offset).ptr());
        }
    });
}

}  // namespace emulation
