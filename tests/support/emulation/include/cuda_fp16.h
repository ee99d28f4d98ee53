// __half and its conversions, which g++ rounds to nearest even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
    _Float16 value;
};

inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half_rn(float v) { return {_Float16(v)}; }

struct __half2 {
    __half x, y;
};

inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }

// Of a number and NaN it is the number.
inline __half2 __hmax2(__half2 a, __half2 b) {
    return {{_Float16(std::fmax(float(a.x.value), float(b.x.value)))},
            {_Float16(std::fmax(float(a.y.value), float(b.y.value)))}};
}

// NaN if one of the two is.
inline __half2 __hmax2_nan(__half2 a, __half2 b) {
    const auto greater = [](__half a, __half b) { return a.value != a.value || a.value > b.value ? a : b; };
    return {greater(a.x, b.x), greater(a.y, b.y)};
}

inline uint32_t __hle2_mask(__half2 a, __half2 b) {
    return (a.x.value <= b.x.value ? 0xffffu : 0) | (a.y.value <= b.y.value ? 0xffff0000u : 0);
}
