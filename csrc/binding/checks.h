// What keeps the kernels within their tensors, whoever calls an operator. All that cbam_fused/checks.py refuses of x,
// parameters and residual, but not that there is no gate at all, is refused here, since that check is made to say more
// only after an operator has failed. An exported program calls the operators without it, and hooks on saved tensors may
// give back something else than was saved.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "../problem.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// x itself. Where a maximum is, is kept in int32, and blocks of threads count some way beyond the last one.
inline const Tensor& checked_image(const Tensor& x) {
    constexpr int64_t limit = (int64_t(1) << 31) - (1 << 12);
    STD_TORCH_CHECK(x.dim() == 4, "x must be (N, C, H, W), got ", x.dim(), " dimensions");
    const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
    STD_TORCH_CHECK(std::min({C, H, W}) > 0, "x must be (N, C, H, W) with C, H, W of at least 1");
    STD_TORCH_CHECK(C < limit && H < limit && W < limit && H * W < limit,
                    "x must have fewer than 2^31 - 2^12 channels and fewer than 2^31 - 2^12 pixels an image; "
                    "CBAM_FUSED_BACKEND=reference serves more");
    return x;
}

inline bool same_device(const Tensor& x, const Tensor& t) {
    return x.is_cpu() ? t.is_cpu() : !t.is_cpu() && t.get_device_index() == x.get_device_index();
}

// t itself, a tensor of x's size and type.
inline const Tensor& checked_like(const Tensor& x, const Tensor& t) {
    bool fits = t.dim() == 4 && t.scalar_type() == x.scalar_type() && same_device(x, t);
    for (int d = 0; fits && d < 4; ++d) fits = t.size(d) == x.size(d);
    STD_TORCH_CHECK(fits, "y, dy and residual must have the shape and type of x, and be where x is");
    return t;
}

// A parameter of this shape, a matrix also as one of 1x1 convolutions; of x's type, or float32 for half types.
inline void check_parameter(const Tensor& x, const std::optional<Tensor>& t, std::initializer_list<int64_t> shape,
                            const char* name) {
    if (!t) return;
    const int64_t n = int64_t(shape.size());
    bool fits = (t->dim() == n || (n == 2 && t->dim() == 4)) && same_device(x, *t);
    for (int64_t d = 0; fits && d < t->dim(); ++d) fits = t->size(d) == (d < n ? shape.begin()[d] : 1);
    const ScalarType type = t->scalar_type(), of_x = x.scalar_type();
    const bool half = of_x == ScalarType::Half || of_x == ScalarType::BFloat16;
    STD_TORCH_CHECK(fits && (type == of_x || (half && type == ScalarType::Float)), name, " does not fit x");
}

inline void check_numel(const Tensor& t, int64_t numel, const char* name) {
    STD_TORCH_CHECK(t.numel() == numel, name, " must have ", numel, " elements, got ", t.numel());
}

inline void check_left(const Tensor& x, const Tensor& t, ScalarType type, const char* name) {
    STD_TORCH_CHECK(t.scalar_type() == type && t.is_contiguous() && same_device(x, t), name,
                    " is not what the forward left");
}

// Where the maxima were: indices of pixels, (C), and of channels, (HW), for each image, of the gates that there are.
inline void check_index(const cbam::Problem& p, const Tensor& x, const Tensor& index) {
    check_left(x, index, ScalarType::Int, "index");
    check_numel(index, p.N * p.index_size(), "index");
    if (!index.is_cpu()) return;
    auto largest = [](const int32_t* i, int64_t n) {
        uint32_t result = 0;  // of a negative number, too, since it counts as a large one
        for (int64_t k = 0; k < n; ++k) result = std::max(result, uint32_t(i[k]));
        return result;
    };
    const int32_t* i = (const int32_t*)index.const_data_ptr();
    const int64_t pixels = p.spatial ? p.HW() : 0, channels = p.index_size() - pixels;
    for (int64_t n = 0; n < p.N; ++n, i += p.index_size())
        STD_TORCH_CHECK(largest(i, channels) < p.HW() && largest(i + channels, pixels) < p.C,
                        "index is not what the forward left: a hook on saved tensors must give integers back exactly");
}

}  // namespace
