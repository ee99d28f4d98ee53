// What the binding and the CPU kernels agree on. Torch-free: there is a source for each instruction set.
#pragma once

#include "../problem.h"

namespace cbam {

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

using StepsOf = Steps (*)(const Problem&);

struct BackwardKernels {
    StepsOf products;  // the first pass of backward: dg, ds, dresidual
    StepsOf backward;  // if given, only what follows products
    // After backward of every image: rows of dw1 and db1 (row < R), then of dw2 and db2 (row - R < C), then dws, dbs.
    void (*backward_parameters)(const Problem&, int64_t first_row, int64_t last_row);
};

struct Kernels : BackwardKernels {
    const char* name;
    int64_t (*scratch_size)(const Problem&);  // bytes, for one image
    int64_t (*group_size)(const Problem&);    // images that a thread had best take through each step together
    StepsOf forward;                          // y null: attend only, and leave the convolution's result for s
    StepsOf apply;                            // y from the gates
};

#define CBAM_INSTRUCTION_SET(isa)   \
    const Kernels& kernels_##isa(); \
    const BackwardKernels& backward_kernels_##isa();

CBAM_INSTRUCTION_SET(generic)
#if defined(__x86_64__)
CBAM_INSTRUCTION_SET(avx2)
CBAM_INSTRUCTION_SET(avx512)
CBAM_INSTRUCTION_SET(avx512bf16)  // with the instruction that rounds to bfloat16
#endif

}  // namespace cbam
