// __half and its conversions, which g++ rounds to nearest even.
#pragma once

struct __half {
    _Float16 value;
};

inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half_rn(float v) { return {_Float16(v)}; }
