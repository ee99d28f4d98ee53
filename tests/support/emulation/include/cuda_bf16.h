// __nv_bfloat16 and its conversions, rounding to nearest even; NaN becomes 0x7fff as in CUDA's.
#pragma once

#include <bit>
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
