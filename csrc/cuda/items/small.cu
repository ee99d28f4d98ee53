// Kernels of the items that do not read x: the channel gate and its backward, the gradients of the parameters. A block
// computes one item.
//
// Reads, Writes: mlp_forward.cuh, mlp_backward.cuh, parameters.cuh.
// Shared memory: kMlpForward, kMlpBackward or kParameters values.
#include "small.h"

#include "parameters.h"
#include "small.cuh"

namespace cbam::cuda {

// The channel gate of a group of images, or a layer of it.
template <class F> __global__ void __launch_bounds__(kThreads, 2)
    cbam_fwd_mlp_kernel(Forward<F> a, Kind kind, int items) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    small_item(a, kind, blockIdx.x / items, blockIdx.x % items, reinterpret_cast<F*>(shared));
}

// Backward of the channel gate in the first ``blocks`` blocks, items of another kind in the others.
template <class F> __global__ void __launch_bounds__(kThreads, sizeof(F) == 8 ? 1 : 2)
    cbam_bwd_mlp_kernel(Backward<F> a, Kind kind, int items, int blocks, Kind other, int other_items) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    F* const numbers = reinterpret_cast<F*>(shared);
    const int block = blockIdx.x;
    if (block < blocks) small_item(a, kind, block / items, block % items, numbers);
    else small_item(a, other, (block - blocks) / other_items, (block - blocks) % other_items, numbers);
}

// Sums over the images.
template <class F> __global__ void __launch_bounds__(kThreads) cbam_bwd_parameters_kernel(Layout p) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    parameter_gradients<F>(p, blockIdx.x, reinterpret_cast<F*>(shared));
}

template <class F> void launch_small(Launcher& launch, const Forward<F>& a, const Order& order, const Phase& phase) {
    launch(cbam_fwd_mlp_kernel<F>, order.groups * phase.items, kMlpForward * sizeof(F), a, phase.kind, phase.items);
}

template <class F>
void launch_small(Launcher& launch, const Backward<F>& a, const Order& order, const Phase& phase, const Phase* other) {
    const int64_t blocks = order.groups * phase.items, more = other ? order.groups * other->items : 0;
    launch(cbam_bwd_mlp_kernel<F>, blocks + more, kMlpBackward * sizeof(F), a, phase.kind, phase.items, int(blocks),
           other ? other->kind : Kind::none, other ? other->items : 1);
}

template void launch_small<float>(Launcher&, const Forward<float>&, const Order&, const Phase&);
template void launch_small<double>(Launcher&, const Forward<double>&, const Order&, const Phase&);
template void launch_small<float>(Launcher&, const Backward<float>&, const Order&, const Phase&, const Phase*);
template void launch_small<double>(Launcher&, const Backward<double>&, const Order&, const Phase&, const Phase*);

cudaError_t parameter_gradients(const Problem& p, bool programmatic, cudaStream_t stream) {
    Launcher launch{stream, programmatic};
    const int blocks = ParameterItems(p).count();
    if (p.dtype == Dtype::f64)
        launch(cbam_bwd_parameters_kernel<double>, blocks, kParameters * sizeof(double), Layout(p));
    else launch(cbam_bwd_parameters_kernel<float>, blocks, kParameters * sizeof(float), Layout(p));
    return launch.status;
}

}  // namespace cbam::cuda
