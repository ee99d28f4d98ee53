#pragma once

#include <pybind11/pybind11.h>

namespace emulation {

// Buffers, seed and errors, for a module that has launchers.
void define_emulation(pybind11::module_&);

}  // namespace emulation
