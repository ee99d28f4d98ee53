// The interface between the binding and the CPU kernels. Torch-free: each instruction set has its own sources.
#pragma once

#include "../problem.h"

namespace cbam {

// A share of a step: the images [first, last), or one of the equal parts of a single image. Each image has its own
// scratch, which is kept from step to step.
struct Share {
    int64_t first, last, part, parts;
    char* scratch;  // of the first image, aligned to 64 bytes
    int64_t scratch_size;

    void* scratch_of(int64_t image) const { return scratch + (image - first) * scratch_size; }
};

struct Step {
    void (*run)(const Problem&, const Share&);
    int64_t work;  // per image: its time as a number of elements of x read in the same time, roughly; 0: one part only
};

// The steps of an operator, for an image, in order. The parts of a step are independent, and the result does not depend
// on their number: the order of additions depends only on the shape.
struct Steps {
    Step step[10];
    int count = 0;

    void add(void (*run)(const Problem&, const Share&), int64_t work) { step[count++] = {run, work}; }
    const Step* begin() const { return step; }
    const Step* end() const { return step + count; }
};

using StepsOf = Steps (*)(const Problem&);

struct BackwardKernels {
    StepsOf gate_grads;  // the first pass of the backward: dg, ds, dresidual
    StepsOf backward;    // if given, only what follows gate_grads
    // After backward of every image: rows of dw1 and db1 (row < R), then of dw2 and db2 (row - R < C), then dws, dbs.
    void (*backward_parameters)(const Problem&, int64_t first_row, int64_t last_row);
};

struct Kernels : BackwardKernels {
    const char* name;
    int64_t (*scratch_size)(const Problem&);  // bytes, for one image
    int64_t (*group_size)(const Problem&);    // images that a thread should take through each step together
    StepsOf forward;                          // y null: gates_forward only, and save the convolution's result as s
    StepsOf apply_gates;                      // y from the gates
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
