#include "gate.cuh"

namespace cbam::cuda {

namespace {

int lanes_for(int64_t n) {
    int lanes = 1;
    while (lanes < kWarp && lanes < n) lanes *= 2;
    return lanes;
}

}  // namespace

template <class F> void channel_gate_forward(Launcher& launch, const Group<F>& group, const PoolParts<F>& parts) {
    const Problem& p = group.p;
    launch(hidden_layer<F>, group.images * ceil_div(p.R, kHiddenRows), 2 * kThreads * sizeof(F), parts, (const F*)p.w1,
           (const F*)p.b1, group.mean_hw(), group.max_hw(), group.argmax_hw(), group.hidden_mean(), group.hidden_max(),
           int(p.C), int(p.R), F(p.HW()));
    launch(channel_gate<F>, group.images * ceil_div(p.C, kGateChannels), 0, (const F*)p.w2, (const F*)p.b2,
           read(group.hidden_mean()), read(group.hidden_max()), group.g(), int(p.C), int(p.R), lanes_for(p.R));
}

template <class F> void channel_gate_backward(Launcher& launch, const Group<F>& group, const F* dg,
                                              const F* through_maps, int parts, F* dpools) {
    const Problem& p = group.p;
    const int lanes = lanes_for(p.R);
    launch(hidden_backward<F>, group.images * ceil_div(p.R, lanes), 2 * kThreads * sizeof(F), dg, through_maps, parts,
           (const F*)p.w2, read(group.g()), read(group.hidden_mean()), read(group.hidden_max()), group.dlogit(),
           group.dhidden_mean(), group.dhidden_max(), group.hidden(), int(p.C), int(p.R), lanes);
    launch(pools_backward<F>, group.images * ceil_div(p.C, kThreads), 0, (const F*)p.w1, read(group.dhidden_mean()),
           read(group.dhidden_max()), dpools, int(p.C), int(p.R), F(p.HW()));
}

template void channel_gate_forward<float>(Launcher&, const Group<float>&, const PoolParts<float>&);
template void channel_gate_forward<double>(Launcher&, const Group<double>&, const PoolParts<double>&);
template void channel_gate_backward<float>(Launcher&, const Group<float>&, const float*, const float*, int, float*);
template void channel_gate_backward<double>(Launcher&, const Group<double>&, const double*, const double*, int,
                                            double*);

}  // namespace cbam::cuda
