// New tensors. By the C shim: a call of an operator by its name takes longer than the arithmetic of a small map.
#pragma once

#include <stdint.h>

#include <initializer_list>

#include <torch/csrc/stable/tensor.h>

// Before torch 2.13 it had this name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline int32_t type_code(const Tensor& t) {
    int32_t code = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
    return code;
}

// On the device of x.
inline Tensor new_strided(const Tensor& x, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, int32_t type) {
    int32_t device_type = 0, device_index = 0;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device_index));
    AtenTensorHandle result = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), type,
                                                           device_type, device_index, &result));
    return Tensor(result);
}

// With the strides of a dense tensor.
inline Tensor new_like(const Tensor& t) { return new_strided(t, t.sizes(), t.strides(), type_code(t)); }

inline Tensor new_vector(const Tensor& x, int64_t size, int32_t type) {
    const int64_t stride = 1;
    return new_strided(x, {&size, 1}, {&stride, 1}, type);
}

inline Tensor new_matrix(const Tensor& x, int64_t rows, int64_t cols, int32_t type) {
    const int64_t sizes[] = {rows, cols}, strides[] = {cols > 1 ? cols : 1, 1};
    return new_strided(x, {sizes, 2}, {strides, 2}, type);
}

// A tensor of this shape and strides over what buffer has from an offset on. To autograd it is not a view.
inline Tensor slice(const Tensor& buffer, IntHeaderOnlyArrayRef sizes, IntHeaderOnlyArrayRef strides, int64_t offset) {
    AtenTensorHandle result = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), int64_t(sizes.size()), sizes.data(),
                                                                 strides.data(), offset, &result));
    return Tensor(result);
}

}  // namespace
