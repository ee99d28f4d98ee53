// What the binding and the kernels agree on. Torch-free: kernels.cpp is compiled once per instruction set.
#pragma once

#include <stdint.h>

namespace cbam {

enum class Dtype { f32, f64, f16, bf16 };

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

    int64_t HW() const { return H * W; }
    int64_t saved_size() const { return 3 * C + 2 * R + 3 * HW(); }
    int64_t partial_size() const { return C + 3 * R + 2 * k * k + 1; }
};

// Who does what of a step: the images [first, last), or one of the equal parts of a single image. Each image has a
// scratch of its own, which lasts from step to step.
struct Share {
    int64_t first, last, part, parts;
    char* scratch;  // of the first image, 64-byte aligned
    int64_t scratch_size;

    void* scratch_of(int64_t image) const { return scratch + (image - first) * scratch_size; }
};

struct Step {
    void (*run)(const Problem&, const Share&);
    int64_t work;  // on one image: how many elements of x are read in the time that it takes, roughly; 0: one part only
};

// An operator takes an image through these, one after the other. The parts of a step are independent of each other, and
// the result does not depend on how many there are: what is added up in which order is a matter of the shape alone.
struct Steps {
    Step step[10];
    int count = 0;

    void add(void (*run)(const Problem&, const Share&), int64_t work) { step[count++] = {run, work}; }
    const Step* begin() const { return step; }
    const Step* end() const { return step + count; }
};

struct Kernels {
    using StepsOf = Steps (*)(const Problem&);
    const char* name;
    int64_t (*scratch_size)(const Problem&);  // bytes, for one image
    int64_t (*group_size)(const Problem&);    // images that a thread had best take through each step together
    StepsOf forward;                          // y null: attend only, and leave the convolution's result for s
    StepsOf apply;                            // y from the gates
    StepsOf products;                         // the first pass of backward: dg, ds, dresidual
    StepsOf backward;                         // if given, only what follows products
    // After backward of every image: rows of dw1 and db1 (row < R), then of dw2 and db2 (row - R < C), then dws, dbs.
    void (*backward_parameters)(const Problem&, int64_t first_row, int64_t last_row);
};

const Kernels& kernels_generic();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();  // with the instruction that rounds to bfloat16
#endif

}  // namespace cbam
