// The vector types that kernels here use. A copy of one of 16 bytes is a single access, as on a GPU.
#pragma once

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// A copy of it, too, is a single access.
struct alignas(8) uint2 {
    unsigned x, y;

    uint2() = default;
    uint2(const uint2& other) { *this = other; }
    uint2& operator=(const uint2& other) {
        using Bits [[gnu::may_alias]] = unsigned long;
        *reinterpret_cast<Bits*>(this) = *reinterpret_cast<const Bits*>(&other);
        return *this;
    }
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;

    uint4() = default;
    uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
    uint4(const uint4& other) { *this = other; }
    uint4& operator=(const uint4& other) {
        using Bits [[gnu::vector_size(16), gnu::may_alias]] = unsigned;
        *reinterpret_cast<Bits*>(this) = *reinterpret_cast<const Bits*>(&other);
        return *this;
    }
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
