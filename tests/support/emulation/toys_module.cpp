#include "toys.h"

#include "bindings.h"

namespace {

template <toys::Toy toy> int launch(uintptr_t x, uintptr_t y, int n, bool wrong) {
    return toy(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n, wrong);
}

}  // namespace

PYBIND11_MODULE(toys, m) {
    emulation::define_emulation(m);
#define TOY(name) m.def(#name, &launch<toys::name>)
    TOY(block_sums), TOY(block_sums_twice), TOY(warp_neighbours), TOY(next_element), TOY(next_in_shared), TOY(copy);
    TOY(cluster_sums), TOY(cluster_ends), TOY(branches), TOY(early_exit), TOY(vectors), TOY(last_block);
    TOY(overwritten), TOY(cluster_begins), TOY(strided), TOY(large_shared), TOY(large_cluster), TOY(odd_grid);
#undef TOY
}
