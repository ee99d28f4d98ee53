// Splits a step's range among shares.
#pragma once

#include "kernels.h"

namespace {

struct Range {
    int64_t first, last;

    int64_t size() const { return last - first; }
    Range times(int64_t n) const { return {first * n, last * n}; }
};

// A share's part of [0, n), in whole units.
inline Range part_of(const cbam::Share& share, int64_t n, int64_t unit = 1) {
    const int64_t units = (n + unit - 1) / unit;
    auto bound = [&](int64_t part) {
        const int64_t i = units * part / share.parts * unit;
        return i < n ? i : n;
    };
    return {bound(share.part), bound(share.part + 1)};
}

}  // namespace
