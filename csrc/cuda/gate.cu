#include "gate.cuh"

namespace cbam::cuda {

template <class F> void channel_gate_forward(Launcher& launch, const Group<F>& group, const PoolParts<F>& parts) {
    const Problem& p = group.p;
    const int64_t N = group.images, blocks = ceil_div(N, kImages);
    const int lanes = lanes_for(p.R);
    launch(hidden_layer<F>, blocks * ceil_div(p.R, kHiddenRows), 2 * kImages * kChunk * sizeof(F), parts,
           (const F*)p.w1, (const F*)p.b1, group.mean_hw(), group.max_hw(), group.argmax_hw(), group.hidden_mean(),
           group.hidden_max(), N, int(p.C), int(p.R), F(p.HW()));
    launch(channel_gate<F>, blocks * ceil_div(p.C, gate_channels(lanes)), kImages * kChunk * sizeof(F), (const F*)p.w2,
           (const F*)p.b2, read(group.hidden_mean()), read(group.hidden_max()), group.g(), N, int(p.C), int(p.R),
           lanes);
}

template <class F> void channel_gate_backward(Launcher& launch, const Group<F>& group, const F* dg,
                                              const F* through_maps, int parts, F* dpools) {
    const Problem& p = group.p;
    const int64_t N = group.images, blocks = ceil_div(N, kImages);
    constexpr int kChannels = kImages * kChunk;
    launch(hidden_backward<F>, blocks * ceil_div(p.R, kUnits), (kChannels + kUnitGroups * kImages * kUnits) * sizeof(F),
           dg, through_maps, parts, (const F*)p.w2, read(group.g()), read(group.hidden_mean()),
           read(group.hidden_max()), group.dlogit(), group.dhidden_mean(), group.dhidden_max(), group.hidden(), N,
           int(p.C), int(p.R));
    launch(pools_backward<F>, blocks * ceil_div(p.C, kPoolChannels),
           (2 * kChannels + kPoolGroups * 2 * kImages * kPoolChannels) * sizeof(F), (const F*)p.w1,
           read(group.dhidden_mean()), read(group.dhidden_max()), dpools, N, int(p.C), int(p.R), F(p.HW()));
}

template void channel_gate_forward<float>(Launcher&, const Group<float>&, const PoolParts<float>&);
template void channel_gate_forward<double>(Launcher&, const Group<double>&, const PoolParts<double>&);
template void channel_gate_backward<float>(Launcher&, const Group<float>&, const float*, const float*, int, float*);
template void channel_gate_backward<double>(Launcher&, const Group<double>&, const double*, const double*, int,
                                            double*);

}  // namespace cbam::cuda
