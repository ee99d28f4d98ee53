// See entry.h.
#pragma once

#include "entry.h"

#include "../forward.h"

#ifndef CBAM_BF16_ONLY
namespace {

int64_t scratch_size(const Problem& p) {
    return with_type(p, [&]<class T>(T) { return Scratch<Acc<T>>(p, nullptr).bytes; });
}

int64_t group_size(const Problem& p) {
    return with_type(p, [&]<class T>(T) { return group_size(p, sizeof(T), sizeof(Acc<T>)); });
}

}  // namespace
#endif

const cbam::Kernels& cbam::CBAM_JOIN(kernels_, CBAM_ISA)() {
#ifdef CBAM_BF16_ONLY
    const auto scratch_size = kernels_avx512().scratch_size, group_size = kernels_avx512().group_size;
#endif
    static const Kernels kernels = {CBAM_JOIN(backward_kernels_, CBAM_ISA)(),
                                    CBAM_STRING(CBAM_ISA),
                                    scratch_size,
                                    group_size,
                                    CBAM_STEPS_OF(forward, forward_steps),
                                    CBAM_STEPS_OF(apply_gates, apply_steps)};
    return kernels;
}
