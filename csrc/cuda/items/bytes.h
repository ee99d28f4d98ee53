// Shared memory of an item, in bytes.
#pragma once

#include <algorithm>

#include "backward.cuh"
#include "forward.cuh"
#include "orders.h"

namespace cbam::cuda {

template <class T, int V, bool channels_last> size_t item_bytes(const Forward<Acc<T>>& a, Kind kind) {
    using F = Acc<T>;
    switch (kind) {
        case Kind::pool:
            return a.p.switches.even_ties ? kMergeBytes<EvenSum<F>, V>
                                          : reduce_bytes<F, V, Pool<F, false>>(channels_last);
        case Kind::maps:
            return a.p.switches.even_ties ? kMergeBytes<EvenSum<F>, V>
                                          : reduce_bytes<F, V, Pool<F, true>>(!channels_last);
        case Kind::apply:
            return std::max(TileSides<F, V>::bytes(a.strip), a.gates && a.p.spatial ? window_bytes<F>(2) : 0);
        default: return kMlpForward * sizeof(F);
    }
}

template <class T, int V, bool channels_last> size_t item_bytes(const Backward<Acc<T>>& a, Kind kind) {
    using F = Acc<T>;
    switch (kind) {
        case Kind::products: return products_bytes<F, V>(a.strip) + (channels_last ? a.strip.tile_rows * sizeof(F) : 0);
        case Kind::map_gradients:
            return std::max(reduce_bytes<F, V, MapProducts<F>>(channels_last), window_bytes<F>(1));
        case Kind::input_gradient: return GradientSides<F, V>::bytes(a.strip);
        default: return kMlpBackward * sizeof(F);
    }
}

}  // namespace cbam::cuda
