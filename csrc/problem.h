// What the bindings and the kernels of every device agree on. Torch-free.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define CBAM_ANYWHERE __host__ __device__
#else
#define CBAM_ANYWHERE
#endif

namespace cbam {

enum class Dtype { f32, f64, f16, bf16 };

// Bytes of an element.
inline int size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// One call. Tensors of x's shape are dense, all in the same layout: (N, C, H, W) or, channels_last,
// (N, H, W, C). Everything else is contiguous and in the accumulation type (double for f64, else float).
struct Problem {
    Dtype dtype;
    bool channels_last;
    bool relu;       // the forward ends in a ReLU
    bool even_ties;  // the gradient of a maximum goes to all elements that reach it, not to the first one
    int64_t N, C, H, W, R, k;

    const void *x, *residual;  // residual may be null
    // (R, C) (R) (C, R) (C) (2, k, k) (1). Biases may be null; so may w1 and w2 (no channel gate, R = 0) or ws (no
    // spatial gate, k = 1): what is absent has a gate of ones.
    const void *w1, *b1, *w2, *b2, *ws, *bs;
    void* y;         // written forward; read backward if relu
    void* saved;     // (N, saved_size)
    int32_t* index;  // (N, C + HW): where the maxima over HW and over C were
    const void* s;   // (N, HW): the spatial gate, where it is not the sigmoid of the convolution; null if it is

    const void* dy;                           // null in backward: the gates alone were the result
    void *dx, *dresidual;                     // dresidual is null unless relu
    void *dw1, *db1, *dw2, *db2, *dws, *dbs;  // those of absent parameters are null
    // Gradients by g (N, C) and by s (N, HW), which products writes. If given, backward starts from them instead of
    // from products of its own, the second being that by the result of the convolution; null stands for zeros.
    void *dg, *ds;
    bool given;
    void* partial;  // (N, partial_size): each image's part of the parameter gradients

    CBAM_ANYWHERE int64_t HW() const { return H * W; }
    CBAM_ANYWHERE int64_t saved_size() const { return 3 * C + 2 * R + 3 * HW(); }
    CBAM_ANYWHERE int64_t partial_size() const { return C + 3 * R + 2 * k * k + 1; }
};

}  // namespace cbam
