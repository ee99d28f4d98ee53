// The phases driver: a launch per kind of item, a block per item. A launch waits for the previous one.
//
// Reads: as forward.cuh and backward.cuh.
// Writes: as these.
// Shared memory: item_bytes (bytes.h).
#pragma once

#include "backward.cuh"
#include "bytes.h"
#include "forward.cuh"
#include "small.h"

namespace cbam::cuda {

// The larger kernels ask for three blocks per multiprocessor, so that ptxas does not spill registers to fit a fourth.
// Two kernels of the backward with many float64 registers ask for two.
template <class T> constexpr int kBackwardBlocks = sizeof(T) == 8 ? 2 : 3;

template <class T, int V, bool channels_last, Maxima maxima> __global__ void __launch_bounds__(kThreads, 3)
    cbam_fwd_pool_kernel(Forward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.pool.tiles();
    pool_item<T, V, channels_last, maxima>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last, bool even> __global__ void __launch_bounds__(kThreads, 3)
    cbam_fwd_maps_kernel(Forward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.strip.tiles();
    maps_item<T, V, channels_last, even>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 3)
    cbam_fwd_apply_kernel(Forward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.strip.tiles();
    apply_item<T, V, channels_last>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 3)
    cbam_bwd_products_kernel(Backward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.strip.tiles();
    products_item<T, V, channels_last>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last, bool even> __global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    cbam_bwd_maps_kernel(Backward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.strip.tiles();
    map_gradients_item<T, V, channels_last, even>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last, bool even> __global__ void __launch_bounds__(kThreads, kBackwardBlocks<T>)
    cbam_bwd_input_kernel(Backward<Acc<T>> a) {
    CBAM_SHARED(shared);
    wait_for_launch_before();
    const int tiles = a.strip.tiles();
    input_item<T, V, channels_last, even>(a, blockIdx.x / tiles, blockIdx.x % tiles, shared);
}

template <class T, int V, bool channels_last, bool even>
void run_phases(Launcher& launch, const Forward<Acc<T>>& a, const Order& order) {
    const auto tiles = [&](auto kernel, const Tiling& t, Kind kind) {
        launch(kernel, a.p.N * t.tiles(), item_bytes<T, V, channels_last>(a, kind), a);
    };
    for (int i = 0; i < order.phases; ++i) {
        const Phase& phase = order.phase[i];
        switch (phase.kind) {
            case Kind::pool: {
                constexpr Maxima maxima = even ? Maxima::ties : Maxima::argmax;
                tiles(a.max ? cbam_fwd_pool_kernel<T, V, channels_last, maxima>
                            : cbam_fwd_pool_kernel<T, V, channels_last, Maxima::none>,
                      a.pool, phase.kind);
                break;
            }
            case Kind::maps: tiles(cbam_fwd_maps_kernel<T, V, channels_last, even>, a.strip, phase.kind); break;
            case Kind::apply: tiles(cbam_fwd_apply_kernel<T, V, channels_last>, a.strip, phase.kind); break;
            default: launch_small(launch, a, order, phase);
        }
    }
}

template <class T, int V, bool channels_last, bool even>
void run_phases(Launcher& launch, const Backward<Acc<T>>& a, const Order& order) {
    const auto tiles = [&](auto kernel, Kind kind) {
        launch(kernel, a.p.N * a.strip.tiles(), item_bytes<T, V, channels_last>(a, kind), a);
    };
    // ws_gradients is in the launch of the MLP, which leaves multiprocessors idle.
    const Phase* kernel = nullptr;
    for (int i = 0; i < order.phases; ++i)
        if (order.phase[i].kind == Kind::ws_gradients) kernel = &order.phase[i];
    for (int i = 0; i < order.phases; ++i) {
        const Phase& phase = order.phase[i];
        switch (phase.kind) {
            case Kind::products: tiles(cbam_bwd_products_kernel<T, V, channels_last>, phase.kind); break;
            case Kind::map_gradients: tiles(cbam_bwd_maps_kernel<T, V, channels_last, even>, phase.kind); break;
            case Kind::input_gradient: tiles(cbam_bwd_input_kernel<T, V, channels_last, even>, phase.kind); break;
            case Kind::ws_gradients:
                if (kernel) launch_small(launch, a, order, phase, nullptr);
                break;
            default: launch_small(launch, a, order, phase, kernel), kernel = nullptr;
        }
    }
}

}  // namespace cbam::cuda
