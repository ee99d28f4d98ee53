// What keeps the kernels within their tensors, whoever calls an operator. cbam_fused/checks.py says more, but an
// exported program calls the operators without it, and hooks on saved tensors may give back something else than was
// saved.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "problem.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// x itself. Where a maximum is, is kept in int32.
inline const Tensor& checked_image(const Tensor& x) {
    constexpr int64_t limit = int64_t(1) << 31;
    STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W), got ", x.dim(), " dimensions");
    const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
    STD_TORCH_CHECK(std::min({C, H, W}) > 0, "x must be (N, C, H, W) with C, H, W of at least 1");
    STD_TORCH_CHECK(C < limit && H < limit && W < limit && H * W < limit,
                    "x must have fewer than 2^31 channels and fewer than 2^31 pixels an image; "
                    "CBAM_FUSED_BACKEND=reference serves more");
    return x;
}

// t itself, a tensor of x's size and type.
inline const Tensor& checked_like(const Tensor& x, const Tensor& t) {
    STD_TORCH_CHECK(t.dim() == 4 && t.numel() == x.numel() && t.scalar_type() == x.scalar_type(),
                    "y, dy and residual must have the shape and type of x");
    for (int d = 0; d < 4; ++d)
        STD_TORCH_CHECK(t.size(d) == x.size(d), "y, dy and residual must have the shape and type of x");
    return t;
}

inline void check_numel(const std::optional<Tensor>& t, int64_t numel, const char* name) {
    STD_TORCH_CHECK(!t || t->numel() == numel, name, " must have ", numel, " elements, got ", t->numel());
}

inline void check_type(const Tensor& t, ScalarType type, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous(), name, " is not what the forward left");
}

// Where the maxima were: indices of pixels, (C), and of channels, (HW), for each image.
inline void check_index(const cbam::Problem& p, const Tensor& index) {
    check_type(index, ScalarType::Int, "index");
    check_numel(index, p.N * (p.C + p.HW()), "index");
    if (!index.is_cpu()) return;
    auto largest = [](const int32_t* i, int64_t n) {
        uint32_t result = 0;  // of a negative number, too, since it counts as a large one
        for (int64_t k = 0; k < n; ++k) result = std::max(result, uint32_t(i[k]));
        return result;
    };
    const int32_t* i = (const int32_t*)index.const_data_ptr();
    for (int64_t n = 0; n < p.N; ++n, i += p.C + p.HW())
        STD_TORCH_CHECK(largest(i, p.C) < p.HW() && largest(i + p.C, p.HW()) < p.C,
                        "index is not what the forward left: a hook on saved tensors must give integers back exactly");
}

}  // namespace
