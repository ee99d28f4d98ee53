// The kernels of an instruction set are two objects, which compile in parallel: forward.h and backward.h. Each source
// defines CBAM_ISA, includes this and is compiled with the set's flags. Everything except the entry point has internal
// linkage, so the linker cannot mix the code of two sets.
//
// With CBAM_BF16_ONLY there are kernels for bfloat16 only; those for other types are avx512's.
#pragma once

#include "../kernels.h"
#include "../parts.h"
#include "../simd.h"

#define CBAM_JOIN_(a, b) a##b
#define CBAM_JOIN(a, b) CBAM_JOIN_(a, b)
#define CBAM_STRING_(a) #a
#define CBAM_STRING(a) CBAM_STRING_(a)

namespace {

using cbam::Problem;

// run(T{}) for the problem's element type.
template <class Run> auto with_type(const Problem& p, Run run) {
#ifdef CBAM_BF16_ONLY
    return run(bf16{});
#else
    switch (p.dtype) {
        case cbam::Dtype::f64: return run(double{});
        case cbam::Dtype::f16: return run(f16{});
        case cbam::Dtype::bf16: return run(bf16{});
        default: return run(float{});
    }
#endif
}

#ifdef CBAM_BF16_ONLY
#define CBAM_OTHER_TYPES(member) \
    if (p.dtype != cbam::Dtype::bf16) return cbam::kernels_avx512().member(p);
#else
#define CBAM_OTHER_TYPES(member)
#endif

// A member of Kernels from a template of the element type and the layout.
#define CBAM_STEPS_OF(member, function)                                                                               \
    [](const Problem& p) {                                                                                            \
        CBAM_OTHER_TYPES(member)                                                                                      \
        return with_type(p,                                                                                           \
                         [&]<class T>(T) { return p.channels_last ? function<T, true>(p) : function<T, false>(p); }); \
    }

}  // namespace
