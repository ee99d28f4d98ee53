#include "toys.h"

#include "bindings.h"
#include "counter_toys.h"

namespace py = pybind11;

namespace {

template <toys::Toy toy> int launch(uintptr_t x, uintptr_t y, int n, bool wrong) {
    return toy(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n, wrong);
}

template <class T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

void define_counter_toys(py::module_& m) {
    py::enum_<toys::Fault> faults(m, "Fault", py::module_local());
#define VALUE(name) faults.value(#name, toys::Fault::name);
    FAULTS(VALUE)
#undef VALUE
    m.def("gather",
          [](uintptr_t x, uintptr_t copy, uintptr_t y, uintptr_t counters, int parts, int blocks, toys::Fault fault) {
              return int(toys::gather(at<float>(x), at<float>(copy), at<float>(y), at<unsigned>(counters), parts,
                                      blocks, fault));
          });
    m.def("deal", [](uintptr_t x, uintptr_t y, uintptr_t counters, int parts, int blocks, bool wrong) {
        return int(toys::deal(at<float>(x), at<float>(y), at<unsigned>(counters), parts, blocks, wrong));
    });
    m.def("chain", [](uintptr_t x, uintptr_t y, uintptr_t counters, int parts, int blocks) {
        return int(toys::chain(at<float>(x), at<float>(y), at<unsigned>(counters), parts, blocks));
    });
    m.def("neighbours", [](uintptr_t x, uintptr_t y, uintptr_t counters, int parts) {
        return int(toys::neighbours(at<float>(x), at<float>(y), at<unsigned>(counters), parts));
    });
    m.def("reads_counter", [](uintptr_t y, uintptr_t counters, int parts) {
        return int(toys::reads_counter(at<float>(y), at<unsigned>(counters), parts));
    });
}

}  // namespace

PYBIND11_MODULE(toys, m) {
    emulation::define_emulation(m);
#define TOY(name) m.def(#name, &launch<toys::name>)
    TOY(block_sums), TOY(block_sums_twice), TOY(warp_neighbours), TOY(next_element), TOY(next_in_shared), TOY(copy);
    TOY(cluster_sums), TOY(cluster_ends), TOY(branches), TOY(early_exit), TOY(vectors), TOY(last_block);
    TOY(begins_early), TOY(follows_nothing), TOY(overwritten), TOY(cluster_begins), TOY(strided), TOY(large_shared),
        TOY(large_cluster), TOY(odd_grid);
#undef TOY
    define_counter_toys(m);
}
