// Properties of tensors and new tensors through the C shim: calling an operator by name takes longer than computing a
// small map, and so does translating types into torch::headeronly's.
#pragma once

#include <stdint.h>

#include <torch/csrc/stable/tensor.h>

// Its name before torch 2.13.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::stable::Tensor;

// A tensor's element type and device, in the shim's numbers.
struct Kind {
    int32_t type = 0, device_type = 0, device_index = 0;

    explicit Kind(const Tensor& t) {
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &type));
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
    }
    Kind of_type(int32_t other) const {
        Kind kind = *this;
        kind.type = other;
        return kind;
    }
    bool same_device(const Kind& other) const {
        const bool cpu = device_type == aoti_torch_device_type_cpu();  // all indices are the same device
        return device_type == other.device_type && (cpu || device_index == other.device_index);
    }
    bool operator==(const Kind& other) const { return type == other.type && same_device(other); }
};

inline Tensor new_strided(const Kind& kind, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides) {
    AtenTensorHandle result = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(),
                                                           kind.type, kind.device_type, kind.device_index, &result));
    return Tensor(result);
}

// A dense tensor.
inline Tensor new_like(const Kind& kind, const Tensor& t) { return new_strided(kind, t.sizes(), t.strides()); }

inline Tensor new_vector(const Kind& kind, int64_t size) {
    const int64_t stride = 1;
    return new_strided(kind, {&size, 1}, {&stride, 1});
}

inline Tensor new_matrix(const Kind& kind, int64_t rows, int64_t cols) {
    const int64_t sizes[] = {rows, cols}, strides[] = {cols > 1 ? cols : 1, 1};
    return new_strided(kind, {sizes, 2}, {strides, 2});
}

}  // namespace
