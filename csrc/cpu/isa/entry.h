// The kernels of one instruction set: of the source that includes this, has CBAM_ISA name it, and is compiled with its
// flags. Everything but the entry point has internal linkage, so that the linker can never give one set's code to
// another.
#pragma once

#include "../kernels.h"

#include "../backward.h"
#include "../forward.h"

#define CBAM_JOIN_(a, b) a##b
#define CBAM_JOIN(a, b) CBAM_JOIN_(a, b)
#define CBAM_STRING_(a) #a
#define CBAM_STRING(a) CBAM_STRING_(a)

namespace {

// run(T{}) for the element type of the problem.
template <class Run> auto with_type(const Problem& p, Run run) {
    switch (p.dtype) {
        case cbam::Dtype::f64: return run(double{});
        case cbam::Dtype::f16: return run(f16{});
        case cbam::Dtype::bf16: return run(bf16{});
        default: return run(float{});
    }
}

// A function of Kernels from one that is a template of the element type and the layout.
#define CBAM_STEPS_OF(function)                                                                                       \
    [](const Problem& p) {                                                                                            \
        return with_type(p,                                                                                           \
                         [&]<class T>(T) { return p.channels_last ? function<T, true>(p) : function<T, false>(p); }); \
    }

int64_t scratch_size(const Problem& p) {
    return with_type(p, [&]<class T>(T) { return Scratch<Acc<T>>(p, nullptr).bytes; });
}

int64_t group_size(const Problem& p) {
    return with_type(p, [&]<class T>(T) { return group_size(p, sizeof(T), sizeof(Acc<T>)); });
}

void parameters(const Problem& p, int64_t first, int64_t last) {
    with_type(p, [&]<class T>(T) { backward_parameters<Acc<T>>(p, first, last); });
}

}  // namespace

const cbam::Kernels& cbam::CBAM_JOIN(kernels_, CBAM_ISA)() {
    static const Kernels kernels = {CBAM_STRING(CBAM_ISA),
                                    scratch_size,
                                    group_size,
                                    CBAM_STEPS_OF(forward_steps),
                                    CBAM_STEPS_OF(apply_steps),
                                    CBAM_STEPS_OF(products_steps),
                                    CBAM_STEPS_OF(backward_steps),
                                    parameters};
    return kernels;
}
