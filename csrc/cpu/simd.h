// Vectors of one instruction set. The compiler flags determine the width: 16 bytes by default, 32 with AVX2, 64 with
// AVX-512. The compiler's vector extensions have +, *, < and ?: per lane; intrinsics are used for masked access and
// half conversion.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <stdint.h>

namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

// The accumulation type, and the integer type of its comparisons.
template <class T> struct Accumulate {
    using type = float;
    using index = int32_t;
};
template <> struct Accumulate<double> {
    using type = double;
    using index = int64_t;
};
template <class T> using Acc = typename Accumulate<T>::type;

template <class E, int bytes> struct VecOf {
    typedef E type __attribute__((vector_size(bytes)));
};
template <class F> using Vec = typename VecOf<F, kVecBytes>::type;
template <class F> using IndexVec = typename VecOf<typename Accumulate<F>::index, kVecBytes>::type;
template <class F> constexpr int kLanes = kVecBytes / sizeof(F);

template <class V, class E> inline V broadcast(E value) { return V{} + value; }

template <class V, class P> inline V load_raw(const P* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class To, class From> inline To bit_cast(From v) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &v, sizeof to);
    return to;
}

// ---- conversion of half types

using U16 = VecOf<uint16_t, kVecBytes / 2>::type;
using U32 = VecOf<uint32_t, kVecBytes>::type;
using F32 = Vec<float>;

inline F32 widen(U16 h, bf16) {
#if defined(__AVX512F__)  // gcc 12 compiles __builtin_convertvector to four instructions
    return (F32)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#elif defined(__AVX2__)
    return (F32)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)h), 16);
#else
    return bit_cast<F32>(__builtin_convertvector(h, U32) << 16);
#endif
}

inline U16 narrow(F32 v, bf16) {
#if defined(__AVX512BF16__)
    return (U16)_mm512_cvtneps_pbh((__m512)v);
#else
    U32 u = bit_cast<U32>(v);
    U32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
    U32 quiet_nan = (u >> 16) | 0x40;
    return __builtin_convertvector(v != v ? quiet_nan : rounded, U16);
#endif
}

inline F32 widen(U16 h, f16) {
#if defined(__AVX512F__)
    return (F32)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (F32)_mm256_cvtph_ps((__m128i)h);
#else
    U32 u = __builtin_convertvector(h, U32), magnitude = u & 0x7fff, sign = (u & 0x8000) << 16;
    // Shift exponent and mantissa; the multiplication rebiases, and normalises subnormals.
    F32 finite = bit_cast<F32>(magnitude << 13) * 0x1p112f;
    U32 special = (magnitude << 13) | 0x7f800000;
    return bit_cast<F32>((magnitude >= 0x7c00 ? special : bit_cast<U32>(finite)) | sign);
#endif
}

inline U16 narrow(F32 v, f16) {
#if defined(__AVX512F__)
    return (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    U32 u = bit_cast<U32>(v), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
    U32 normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Below 2^-14 an addition of 0.5 makes the float adder round at the right bit.
    U32 subnormal = bit_cast<U32>(bit_cast<F32>(magnitude) + 0.5f) - 0x3f000000;
    U32 half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x477ff000 ? broadcast<U32>(0x7c00u) : half;
    half = magnitude > 0x7f800000 ? (magnitude >> 13 & 0x3ff) | 0x7e00 : half;
    return __builtin_convertvector(half | sign, U16);
#endif
}

// ---- memory: a whole vector, or its first n lanes (the others read as zero and are not written). No branches: gcc
// contracts a product and a sum to one instruction, with one rounding, only if no branch is between them, and a result
// must not depend on its row's position in a group.

#if defined(__AVX512F__)
#define CBAM_FIRST inline
#else  // a call, since copying n bytes is a call anyway
#define CBAM_FIRST __attribute__((noinline))
#endif

struct Whole {};
struct First {
    int n;
};

// body(i, Whole{}) for every whole vector of [0, n), then body(i, First{rest}): no masks in the loop.
template <class F, class Body> inline void each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes<F> <= n; i += kLanes<F>) body(i, Whole{});
    if (i < n) body(i, First{int(n - i)});
}

template <class F> constexpr int lane_count(Whole) { return kLanes<F>; }
template <class F> constexpr int lane_count(First first) { return first.n; }

inline Vec<float> load(const float* p, Whole) { return load_raw<Vec<float>>(p); }
inline Vec<double> load(const double* p, Whole) { return load_raw<Vec<double>>(p); }
template <class T> inline F32 load(const T* p, Whole) { return widen(load_raw<U16>(p), T{}); }

template <class V, class P> inline void store_raw(P* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
inline void store(float* p, Vec<float> v, Whole) { store_raw(p, v); }
inline void store(double* p, Vec<double> v, Whole) { store_raw(p, v); }
template <class T> inline void store(T* p, F32 v, Whole) { store_raw(p, narrow(v, T{})); }

template <class T> CBAM_FIRST Vec<Acc<T>> load(const T* p, First first) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << first.n) - 1;
    if constexpr (sizeof(T) == 8) return (Vec<double>)_mm512_maskz_loadu_pd(mask, p);
    else if constexpr (sizeof(T) == 4) return (F32)_mm512_maskz_loadu_ps(mask, p);
    else return widen((U16)_mm256_maskz_loadu_epi16(mask, p), T{});
#else
    T lanes[kLanes<Acc<T>>] = {};
    __builtin_memcpy(lanes, p, first.n * sizeof(T));
    return load(lanes, Whole{});
#endif
}

template <class T> CBAM_FIRST void store(T* p, Vec<Acc<T>> v, First first) {
#if defined(__AVX512F__)
    const unsigned mask = (1u << first.n) - 1;
    if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, mask, (__m512d)v);
    else if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, mask, (__m512)v);
    else _mm256_mask_storeu_epi16(p, mask, (__m256i)narrow(v, T{}));
#else
    T lanes[kLanes<Acc<T>>];
    store(lanes, v, Whole{});
    __builtin_memcpy(p, lanes, first.n * sizeof(T));
#endif
}

// v in the lanes that were read, other in the others.
template <class F> inline Vec<F> or_else(Vec<F> v, Whole, Vec<F>) { return v; }
template <class F> inline Vec<F> or_else(Vec<F> v, First first, Vec<F> other) {
    IndexVec<F> number;
    for (int i = 0; i < kLanes<F>; ++i) number[i] = i;
    return number < first.n ? v : other;
}

// Indices are int32 in memory and as wide as F in registers.
template <class Lanes> inline IndexVec<float> load_index(const int32_t* p, Lanes lanes, float) {
    return bit_cast<IndexVec<float>>(load((const float*)p, lanes));
}
template <class Lanes> inline void store_index(int32_t* p, IndexVec<float> v, Lanes lanes, float) {
    store((float*)p, bit_cast<Vec<float>>(v), lanes);
}
template <class Lanes> inline IndexVec<double> load_index(const int32_t* p, Lanes lanes, double) {
    IndexVec<double> v = {};
    for (int i = 0; i < lane_count<double>(lanes); ++i) v[i] = p[i];
    return v;
}
template <class Lanes> inline void store_index(int32_t* p, IndexVec<double> v, Lanes lanes, double) {
    for (int i = 0; i < lane_count<double>(lanes); ++i) p[i] = int32_t(v[i]);
}

// ---- across lanes

template <class V> inline V vmax(V a, V b) { return a > b ? a : b; }

// The lanes i... of a and then b, one after the other.
template <int... i, class V> inline auto shuffle(V a, V b) {
#if __has_builtin(__builtin_shufflevector)
    return __builtin_shufflevector(a, b, i...);
#else  // gcc 11
    using E = decltype(a[0] + 0);
    constexpr int n = sizeof(V) / sizeof(E), chosen = sizeof...(i);
    if constexpr (chosen == n) {
        return __builtin_shuffle(a, b, decltype(a < b){i...});
    } else {
        return typename VecOf<E, chosen * sizeof(E)>::type{(i < n ? a[i % n] : b[i % n])...};
    }
#endif
}

template <int... i> struct Lanes {};
template <int n, int... i> struct FirstLanes : FirstLanes<n - 1, n - 1, i...> {};
template <int... i> struct FirstLanes<0, i...> {
    using type = Lanes<i...>;
};

// op over all lanes: of the two halves of the vector, recursively; within 16 bytes, of the vector and a permutation.
template <class V, class Op> inline auto across(V v, Op op) {
    constexpr int half = sizeof(V) / sizeof(v[0]) / 2;
    if constexpr (sizeof(V) > 16) {
        auto halves = [&]<int... i>(Lanes<i...>) { return op(shuffle<i...>(v, v), shuffle<half + i...>(v, v)); };
        return across(halves(typename FirstLanes<half>::type{}), op);
    } else if constexpr (half == 2) {
        v = op(v, shuffle<2, 3, 0, 1>(v, v));
        return op(v, shuffle<1, 0, 3, 2>(v, v))[0];
    } else {
        return op(v, shuffle<1, 0>(v, v))[0];
    }
}
template <class F> inline F sum_lanes(Vec<F> v) {
    return across(v, [](auto a, auto b) { return a + b; });
}
template <class F> inline F max_lanes(Vec<F> v) {
    return across(v, [](auto a, auto b) { return a > b ? a : b; });
}
template <class F> inline auto min_lanes(IndexVec<F> v) {
    return across(v, [](auto a, auto b) { return a < b ? a : b; });
}

// Lane i of the result is the sum of the lanes of v[i].
template <class V, int n> inline V sum_each(V (&v)[n]) {
    static_assert(n == sizeof(V) / sizeof(v[0][0]));
    [&]<int... i>(Lanes<i...>) {
        for (int left = n; left > 1; left /= 2)
            for (int j = 0; j < left / 2; ++j)
                v[j] = shuffle<(2 * i)...>(v[2 * j], v[2 * j + 1]) + shuffle<(2 * i + 1)...>(v[2 * j], v[2 * j + 1]);
    }(typename FirstLanes<n>::type{});
    return v[0];
}

// The transpose of the square matrix with rows v.
template <class V, int n> inline void transpose(V (&v)[n]) {
    static_assert(n == sizeof(V) / sizeof(v[0][0]));
    [&]<int... i>(Lanes<i...>) {
        for (int round = 1; round < n; round *= 2) {
            V next[n];
            for (int j = 0; j < n / 2; ++j) {
                next[j] = shuffle<(2 * i)...>(v[2 * j], v[2 * j + 1]);
                next[j + n / 2] = shuffle<(2 * i + 1)...>(v[2 * j], v[2 * j + 1]);
            }
            for (int j = 0; j < n; ++j) v[j] = next[j];
        }
    }(typename FirstLanes<n>::type{});
}

// A bit for every lane in which a and b are equal.
template <class F> inline unsigned equal_bits(Vec<F> a, Vec<F> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(F) == 8) return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
    else return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(F) == 8) return _mm256_movemask_pd((__m256d)(a == b));
    else return _mm256_movemask_ps((__m256)(a == b));
#elif defined(__x86_64__)
    if constexpr (sizeof(F) == 8) return _mm_movemask_pd((__m128d)(a == b));
    else return _mm_movemask_ps((__m128)(a == b));
#else
    unsigned result = 0;
    for (int i = 0; i < kLanes<F>; ++i) result |= unsigned(a[i] == b[i]) << i;
    return result;
#endif
}

}  // namespace
