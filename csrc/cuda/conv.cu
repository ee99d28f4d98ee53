#include "conv.cuh"

#include <type_traits>

namespace cbam::cuda {

namespace {

// Calls f(K) with the size of the kernel, where there is code for it alone, else with 0.
template <class Function> void with_size(int64_t k, const Function& f) {
    if (k == 7) f(std::integral_constant<int, 7>());
    else if (k == 3) f(std::integral_constant<int, 3>());
    else f(std::integral_constant<int, 0>());
}

}  // namespace

template <class F> void spatial_gate_forward(Launcher& launch, const Group<F>& group) {
    const Problem& p = group.p;
    with_size(p.k, [&](auto size) {
        using Square = cuda::Square<size(), F>;
        launch(spatial_gate<size(), F>, group.images * squares(p.H, p.W),
               (2 * Square::kTile + Square::kWeights) * sizeof(F), read(group.mean_c()), read(group.max_c()),
               (const F*)p.ws, (const F*)p.bs, group.s(), int(p.H), int(p.W), int(p.k), p.y != nullptr);
    });
}

template <class F> void spatial_gate_backward(Launcher& launch, const Group<F>& group, const F* dz, F* dmaps) {
    const Problem& p = group.p;
    const int H = p.H, W = p.W, k = p.k;
    with_size(p.k, [&](auto size) {
        using Square = cuda::Square<size(), F>;
        launch(map_gradients<size(), F>, group.images * squares(H, W), (Square::kTile + Square::kWeights) * sizeof(F),
               dz, (const F*)p.ws, dmaps, H, W, k, F(p.C));
        constexpr int kSums = kThreads / kWarp * (size() ? size() : 8);
        launch(kernel_gradients<size(), F>, group.images * (2 * k + 1), kSums * sizeof(F), dz, read(group.mean_c()),
               read(group.max_c()), group.dconv(), H, W, k);
    });
}

template void spatial_gate_forward<float>(Launcher&, const Group<float>&);
template void spatial_gate_forward<double>(Launcher&, const Group<double>&);
template void spatial_gate_backward<float>(Launcher&, const Group<float>&, const float*, float*);
template void spatial_gate_backward<double>(Launcher&, const Group<double>&, const double*, double*);

}  // namespace cbam::cuda
