// __nv_bfloat16 and its conversions, rounding to nearest even; NaN becomes 0x7fff as in CUDA's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) { return std::bit_cast<float>(uint32_t(v.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    if (v != v) return {0x7fff};
    const uint32_t bits = std::bit_cast<uint32_t>(v);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }

// Of a number and NaN it is the number.
inline __nv_bfloat162 __hmax2(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {__float2bfloat16_rn(std::fmax(__bfloat162float(a.x), __bfloat162float(b.x))),
            __float2bfloat16_rn(std::fmax(__bfloat162float(a.y), __bfloat162float(b.y)))};
}

// NaN if one of the two is.
inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
    const auto greater = [](__nv_bfloat16 a, __nv_bfloat16 b) {
        const float of_a = __bfloat162float(a);
        return of_a != of_a || of_a > __bfloat162float(b) ? a : b;
    };
    return {greater(a.x, b.x), greater(a.y, b.y)};
}

inline uint32_t __hle2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
    return (__low2float(a) <= __low2float(b) ? 0xffffu : 0) | (__high2float(a) <= __high2float(b) ? 0xffff0000u : 0);
}
