// A group of images of a call, and where their vectors lie.
#pragma once

#include "staged_tile.cuh"

namespace cbam::cuda {

// The images [first, first + images); F is the type of the sums.
template <class F> struct Group {
    const Problem& p;
    int64_t first, images;

    Rows<F> saved(int64_t offset) const { return {(F*)p.saved + first * p.saved_size() + offset, p.saved_size()}; }
    Rows<F> mean_hw() const { return saved(0); }
    Rows<F> max_hw() const { return saved(p.C); }
    Rows<F> g() const { return saved(2 * p.C); }
    Rows<F> hidden_mean() const { return saved(3 * p.C); }
    Rows<F> hidden_max() const { return saved(3 * p.C + p.R); }
    Rows<F> mean_c() const { return saved(3 * p.C + 2 * p.R); }
    Rows<F> max_c() const { return saved(3 * p.C + 2 * p.R + p.HW()); }
    Rows<F> s() const { return saved(3 * p.C + 2 * p.R + 2 * p.HW()); }

    Rows<int32_t> argmax_hw() const { return {p.index + first * (p.C + p.HW()), p.C + p.HW()}; }
    Rows<int32_t> argmax_c() const { return {p.index + first * (p.C + p.HW()) + p.C, p.C + p.HW()}; }

    Rows<F> partial(int64_t offset) const {
        return {(F*)p.partial + first * p.partial_size() + offset, p.partial_size()};
    }
    Rows<F> dlogit() const { return partial(0); }
    Rows<F> hidden() const { return partial(p.C); }
    Rows<F> dhidden_mean() const { return partial(p.C + p.R); }
    Rows<F> dhidden_max() const { return partial(p.C + 2 * p.R); }
    Rows<F> dconv() const { return partial(p.C + 3 * p.R); }  // dws and dbs
};

template <class F> Rows<const F> read(Rows<F> rows) { return {rows.data, rows.stride}; }

}  // namespace cbam::cuda
