// Checks that keep the kernels within their tensors for every caller. They reject everything about x, parameters and
// residual that cbam_fused/checks.py rejects, except a call without any gate: cbam_fused/checks.py runs only after an
// operator has failed, for a precise message. Exported programs call the operators without it, and hooks on saved
// tensors may return other tensors.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include <torch/csrc/stable/tensor.h>

#include "../problem.h"
#include "allocation.h"

namespace {

// x. The argmax is int32, and thread blocks count somewhat beyond the last element.
inline const Tensor& checked_image(const Tensor& x) {
    constexpr int64_t limit = (int64_t(1) << 31) - (1 << 12);
    const IntHeaderOnlyArrayRef sizes = x.sizes();
    STD_TORCH_CHECK(sizes.size() == 4, "x must be (N, C, H, W), got ", sizes.size(), " dimensions");
    const int64_t C = sizes[1], H = sizes[2], W = sizes[3];
    STD_TORCH_CHECK(std::min({C, H, W}) > 0, "x must be (N, C, H, W) with C, H, W of at least 1");
    STD_TORCH_CHECK(C < limit && H < limit && W < limit && H * W < limit,
                    "x must have fewer than 2^31 - 2^12 channels and fewer than 2^31 - 2^12 pixels an image; "
                    "CBAM_FUSED_BACKEND=reference serves more");
    return x;
}

// t, a tensor of x's size and type.
inline const Tensor& checked_like(const Tensor& x, const Kind& kind, const Tensor& t) {
    const IntHeaderOnlyArrayRef expected = x.sizes(), sizes = t.sizes();
    const bool fits = sizes.size() == 4 && Kind(t) == kind && std::equal(sizes.begin(), sizes.end(), expected.begin());
    STD_TORCH_CHECK(fits, "y, dy and residual must have the shape and type of x, and be where x is");
    return t;
}

// A parameter of this shape, a matrix also as 1x1 convolution; of x's type, or float32 for half types.
inline void check_parameter(const Kind& x, const Kind& sums, const std::optional<Tensor>& t,
                            std::initializer_list<int64_t> shape, const char* name) {
    if (!t) return;
    const IntHeaderOnlyArrayRef sizes = t->sizes();
    const size_t n = shape.size(), dim = sizes.size();
    const Kind kind(*t);
    const bool fits = (dim == n || (n == 2 && dim == 4 && sizes[2] == 1 && sizes[3] == 1)) &&
                      std::equal(shape.begin(), shape.end(), sizes.begin()) && (kind == x || kind == sums);
    STD_TORCH_CHECK(fits, name, " does not fit x");
}

inline void check_numel(const Tensor& t, int64_t numel, const char* name) {
    STD_TORCH_CHECK(t.numel() == numel, name, " must have ", numel, " elements, got ", t.numel());
}

inline void check_left(const Kind& kind, const Tensor& t, const char* name) {
    STD_TORCH_CHECK(Kind(t) == kind && t.is_contiguous(), name, " is not what the forward left");
}

// The argmax of the present gates per image: indices of pixels (C) and of channels (HW).
inline void check_index(const cbam::Problem& p, const Kind& x, const Tensor& index) {
    check_left(x.of_type(aoti_torch_dtype_int32()), index, "index");
    check_numel(index, p.N * p.index_size(), "index");
    if (!index.is_cpu()) return;
    auto largest = [](const int32_t* i, int64_t n) {
        uint32_t result = 0;  // also detects negative numbers, which are large as unsigned
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
