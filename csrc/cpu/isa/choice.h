// The choice of the instruction set. Its includer must run on any processor.
#pragma once

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../kernels.h"

namespace cbam {

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not have it. AVX2 implies that the system saves the registers.
[[maybe_unused]] inline bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#define CBAM_KERNELS_OF(isa) kernels_##isa
#define CBAM_KERNELS(isa) CBAM_KERNELS_OF(isa)

// The widest instruction set that this processor and ATEN_CPU_CAPABILITY (default, avx2, avx512) allow; avx512 excludes
// the bfloat16 extension, which is used if the variable is not set.
inline const Kernels& choose_kernels() {
#if defined(CBAM_NATIVE)  // built for this machine only
    return CBAM_KERNELS(CBAM_NATIVE)();
#else
#if defined(__x86_64__)
    const char* limit = getenv("ATEN_CPU_CAPABILITY");
    const bool generic = limit && !strcmp(limit, "default");
    const bool avx2 = limit && !strcmp(limit, "avx2");
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && !limit && __builtin_cpu_supports("avx512bf16")) return kernels_avx512bf16();
    if (has_avx512 && !generic && !avx2) return kernels_avx512();
    if (has_avx2 && !generic) return kernels_avx2();
#endif
    return kernels_generic();
#endif
}

}  // namespace cbam
