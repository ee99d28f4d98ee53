// See entry.h.
#pragma once

#include "entry.h"

#include "../backward.h"

#ifndef CBAM_BF16_ONLY
namespace {

void parameters(const Problem& p, int64_t first, int64_t last) {
    with_type(p, [&]<class T>(T) { backward_parameters<Acc<T>>(p, first, last); });
}

}  // namespace
#endif

const cbam::BackwardKernels& cbam::CBAM_JOIN(backward_kernels_, CBAM_ISA)() {
#ifdef CBAM_BF16_ONLY
    const auto parameters = kernels_avx512().backward_parameters;
#endif
    static const BackwardKernels kernels = {CBAM_STEPS_OF(gate_grads, gate_grads_steps),
                                            CBAM_STEPS_OF(backward, backward_steps), parameters};
    return kernels;
}
