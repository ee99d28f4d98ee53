// The dataflow driver: one persistent launch, whose blocks take tickets for items until none are left. A block waits at
// a counter for the items that its item needs. These have lower tickets, so the lowest unfinished item never waits. The
// launch ends with any number of blocks.
//
// Reads: as forward.cuh, backward.cuh and small.cu.
// Writes: as these, and the counters.
// Shared memory: the largest of all items (most_bytes).
// Between blocks: the counters. The first gives out tickets; the others count the finished items of a phase and group.
#pragma once

#include "../common/counters.cuh"
#include "backward.cuh"
#include "bytes.h"
#include "forward.cuh"
#include "small.cuh"

namespace cbam::cuda {

// Not inlined: inlined into two kernels per direction and type, it makes nvcc take an eighth longer. Items that read x
// are inlined, because a called function accesses x through generic addresses.
template <class Call, class F>
__device__ __noinline__ void group_item(const Call& a, Kind kind, int64_t group, int index, F* shared) {
    small_item(a, kind, group, index, shared);
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void run_item(const Forward<Acc<T>>& a, const Item& item, unsigned char* shared) {
    const int tiles = item.kind == Kind::pool ? a.pool.tiles() : a.strip.tiles(), tile = item.index % tiles;
    const int64_t n = item.group * a.images + item.index / tiles;
    switch (item.kind) {
        case Kind::pool:
            if (n < a.p.N) pool_item<T, V, channels_last, Maxima::argmax>(a, n, tile, shared);
            break;
        case Kind::maps:
            if (n < a.p.N) maps_item<T, V, channels_last, false>(a, n, tile, shared);
            break;
        case Kind::apply:
            if (n < a.p.N) apply_item<T, V, channels_last>(a, n, tile, shared);
            break;
        default: group_item(a, item.kind, item.group, item.index, reinterpret_cast<Acc<T>*>(shared));
    }
}

template <class T, int V, bool channels_last>
__device__ __forceinline__ void run_item(const Backward<Acc<T>>& a, const Item& item, unsigned char* shared) {
    const int tiles = a.strip.tiles(), tile = item.index % tiles;
    const int64_t n = item.group * a.images + item.index / tiles;
    switch (item.kind) {
        case Kind::products:
            if (n < a.p.N) products_item<T, V, channels_last>(a, n, tile, shared);
            break;
        case Kind::map_gradients:
            if (n < a.p.N) map_gradients_item<T, V, channels_last, false>(a, n, tile, shared);
            break;
        case Kind::input_gradient:
            if (n < a.p.N) input_item<T, V, channels_last, false>(a, n, tile, shared);
            break;
        default: group_item(a, item.kind, item.group, item.index, reinterpret_cast<Acc<T>*>(shared));
    }
}

template <class T, int V, bool channels_last, class Call>
__device__ __forceinline__ void run_tickets(const Call& a, const Order& order, unsigned* counters) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // plan.cpp checks it; an empty kernel compiles faster
    CBAM_SHARED(shared);
    for (;;) {
        const unsigned ticket = take(counters);
        if (ticket >= order.tickets()) return;
        const Item item = order.item(ticket);
        if (item.kind == Kind::none) continue;
        const Need need = order.need(item);
        if (need.count) wait_for(counters + 1 + need.counter, unsigned(need.count));
        run_item<T, V, channels_last>(a, item, shared);
        if (item.phase == order.closing) arrive(counters + order.counters());
        if (item.phase < order.phases) arrive(counters + 1 + order.counter(item.phase, item.group));
    }
#endif
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 2)
    cbam_fwd_dataflow_kernel(const __grid_constant__ Forward<Acc<T>> a, const __grid_constant__ Order order,
                             unsigned* counters) {
    run_tickets<T, V, channels_last>(a, order, counters);
}

template <class T, int V, bool channels_last> __global__ void __launch_bounds__(kThreads, 2)
    cbam_bwd_dataflow_kernel(const __grid_constant__ Backward<Acc<T>> a, const __grid_constant__ Order order,
                             unsigned* counters) {
    run_tickets<T, V, channels_last>(a, order, counters);
}

template <class T, int V, bool channels_last, class Call> size_t most_bytes(const Call& a, const Order& order) {
    size_t bytes = kParameters * sizeof(Acc<T>);
    for (int i = 0; i < order.phases; ++i)
        bytes = std::max(bytes, item_bytes<T, V, channels_last>(a, order.phase[i].kind));
    return bytes;
}

template <class T, int V, bool channels_last>
void run_dataflow(Launcher& launch, const Forward<Acc<T>>& a, const Order& order, int blocks, unsigned* counters) {
    launch.persistent(cbam_fwd_dataflow_kernel<T, V, channels_last>, std::min<int64_t>(blocks, order.tickets()),
                      most_bytes<T, V, channels_last>(a, order), counters, 1 + order.counters(), a, order, counters);
}

template <class T, int V, bool channels_last>
void run_dataflow(Launcher& launch, const Backward<Acc<T>>& a, const Order& order, int blocks, unsigned* counters) {
    launch.persistent(cbam_bwd_dataflow_kernel<T, V, channels_last>, std::min<int64_t>(blocks, order.tickets()),
                      most_bytes<T, V, channels_last>(a, order), counters, 1 + order.counters(), a, order, counters);
}

}  // namespace cbam::cuda
