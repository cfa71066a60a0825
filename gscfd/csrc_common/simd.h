// Float: one vector register of floats. Mask: one truth value per lane.
//
// For *.simd.cpp files only: everything is in the namespace of the instruction set that the file is compiled for. These
// files must not instantiate templates or inline functions of the standard library: the linker keeps one copy of each
// for the whole library, possibly the one that needs instructions this CPU lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define GSCFD_INLINE inline __attribute__((always_inline))

namespace gscfd {
namespace GSCFD_ISA {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

struct Mask {
    __mmask16 m;
};
struct Float {
    static constexpr int width = 16;
    __m512 v;
    Float() = default;
    GSCFD_INLINE Float(__m512 x) : v(x) {}
    GSCFD_INLINE Float(float x) : v(_mm512_set1_ps(x)) {}
};
GSCFD_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
GSCFD_INLINE void store(float* p, Float a) { _mm512_storeu_ps(p, a.v); }
GSCFD_INLINE Float operator+(Float a, Float b) { return _mm512_add_ps(a.v, b.v); }
GSCFD_INLINE Float operator-(Float a, Float b) { return _mm512_sub_ps(a.v, b.v); }
GSCFD_INLINE Float operator*(Float a, Float b) { return _mm512_mul_ps(a.v, b.v); }
GSCFD_INLINE Float operator/(Float a, Float b) { return _mm512_div_ps(a.v, b.v); }
GSCFD_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
GSCFD_INLINE Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
GSCFD_INLINE Float min(Float a, Float b) { return _mm512_min_ps(a.v, b.v); }
GSCFD_INLINE Float max(Float a, Float b) { return _mm512_max_ps(a.v, b.v); }
GSCFD_INLINE Float abs(Float a) { return _mm512_abs_ps(a.v); }
GSCFD_INLINE Float sqrt(Float a) { return _mm512_sqrt_ps(a.v); }
// 1 / a to about one unit in the last place. A Newton step is faster than 512-bit division.
GSCFD_INLINE Float reciprocal(Float a) {
    const Float guess = _mm512_rcp14_ps(a.v);
    return fma(guess, fnma(a, guess, Float(1.0f)), guess);
}
GSCFD_INLINE Float ceil(Float a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
GSCFD_INLINE Float round(Float a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a * 2^n for integer n.
GSCFD_INLINE Float scale_by_power(Float a, Float n) { return _mm512_scalef_ps(a.v, n.v); }
GSCFD_INLINE Mask operator<(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
GSCFD_INLINE Mask operator<=(Float a, Float b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
GSCFD_INLINE Mask operator&(Mask a, Mask b) { return {__mmask16(a.m & b.m)}; }
GSCFD_INLINE Mask operator|(Mask a, Mask b) { return {__mmask16(a.m | b.m)}; }
GSCFD_INLINE Mask and_not(Mask a, Mask b) { return {__mmask16(a.m & ~b.m)}; }
GSCFD_INLINE bool any(Mask a) { return a.m != 0; }
GSCFD_INLINE Float select(Mask m, Float a, Float b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
GSCFD_INLINE Float or_zero(Mask m, Float a) { return _mm512_maskz_mov_ps(m.m, a.v); }

GSCFD_INLINE __m256 fold(Float a) { return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)); }

#elif defined(__AVX2__) && defined(__FMA__)

struct Mask {
    __m256 m;
};
struct Float {
    static constexpr int width = 8;
    __m256 v;
    Float() = default;
    GSCFD_INLINE Float(__m256 x) : v(x) {}
    GSCFD_INLINE Float(float x) : v(_mm256_set1_ps(x)) {}
};
GSCFD_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
GSCFD_INLINE void store(float* p, Float a) { _mm256_storeu_ps(p, a.v); }
GSCFD_INLINE Float operator+(Float a, Float b) { return _mm256_add_ps(a.v, b.v); }
GSCFD_INLINE Float operator-(Float a, Float b) { return _mm256_sub_ps(a.v, b.v); }
GSCFD_INLINE Float operator*(Float a, Float b) { return _mm256_mul_ps(a.v, b.v); }
GSCFD_INLINE Float operator/(Float a, Float b) { return _mm256_div_ps(a.v, b.v); }
GSCFD_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
GSCFD_INLINE Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
GSCFD_INLINE Float min(Float a, Float b) { return _mm256_min_ps(a.v, b.v); }
GSCFD_INLINE Float max(Float a, Float b) { return _mm256_max_ps(a.v, b.v); }
GSCFD_INLINE Float abs(Float a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
GSCFD_INLINE Float sqrt(Float a) { return _mm256_sqrt_ps(a.v); }
GSCFD_INLINE Float reciprocal(Float a) { return Float(1.0f) / a; }
GSCFD_INLINE Float ceil(Float a) { return _mm256_ceil_ps(a.v); }
GSCFD_INLINE Float round(Float a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
GSCFD_INLINE Float scale_by_power(Float a, Float n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), exponent));
}
GSCFD_INLINE Mask operator<(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
GSCFD_INLINE Mask operator<=(Float a, Float b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
GSCFD_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
GSCFD_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.m, b.m)}; }
GSCFD_INLINE Mask and_not(Mask a, Mask b) { return {_mm256_andnot_ps(b.m, a.m)}; }
GSCFD_INLINE bool any(Mask a) { return _mm256_movemask_ps(a.m) != 0; }
GSCFD_INLINE Float select(Mask m, Float a, Float b) { return _mm256_blendv_ps(b.v, a.v, m.m); }
GSCFD_INLINE Float or_zero(Mask m, Float a) { return _mm256_and_ps(m.m, a.v); }
GSCFD_INLINE __m256 fold(Float a) { return a.v; }

#else

// Four lanes in plain C++: SSE2 on x86-64, NEON on ARM, through the compiler's vector types.
typedef float Vector4 __attribute__((vector_size(16)));
typedef int32_t Integer4 __attribute__((vector_size(16)));
struct Mask {
    Integer4 m;
};
struct Float {
    static constexpr int width = 4;
    Vector4 v;
    Float() = default;
    GSCFD_INLINE Float(Vector4 x) : v(x) {}
    GSCFD_INLINE Float(float x) : v(Vector4{x, x, x, x}) {}
};
GSCFD_INLINE Float load(const float* p) {
    Float a;
    memcpy(&a.v, p, sizeof a.v);
    return a;
}
GSCFD_INLINE void store(float* p, Float a) { memcpy(p, &a.v, sizeof a.v); }
GSCFD_INLINE Float operator+(Float a, Float b) { return a.v + b.v; }
GSCFD_INLINE Float operator-(Float a, Float b) { return a.v - b.v; }
GSCFD_INLINE Float operator*(Float a, Float b) { return a.v * b.v; }
GSCFD_INLINE Float operator/(Float a, Float b) { return a.v / b.v; }
GSCFD_INLINE Float fma(Float a, Float b, Float c) { return a.v * b.v + c.v; }
GSCFD_INLINE Float fnma(Float a, Float b, Float c) { return c.v - a.v * b.v; }
GSCFD_INLINE Integer4 bits(Vector4 v) { return reinterpret_cast<Integer4>(v); }
GSCFD_INLINE Vector4 from_bits(Integer4 i) { return reinterpret_cast<Vector4>(i); }
GSCFD_INLINE Float blend(Integer4 m, Float a, Float b) { return from_bits((bits(a.v) & m) | (bits(b.v) & ~m)); }
GSCFD_INLINE Float min(Float a, Float b) { return blend(a.v < b.v, a, b); }
GSCFD_INLINE Float max(Float a, Float b) { return blend(a.v > b.v, a, b); }
GSCFD_INLINE Float abs(Float a) { return from_bits(bits(a.v) & 0x7fffffff); }
GSCFD_INLINE Float sqrt(Float a) {
    return Vector4{__builtin_sqrtf(a.v[0]), __builtin_sqrtf(a.v[1]), __builtin_sqrtf(a.v[2]), __builtin_sqrtf(a.v[3])};
}
GSCFD_INLINE Float reciprocal(Float a) { return Float(1.0f) / a; }
GSCFD_INLINE Float ceil(Float a) {
    return Vector4{__builtin_ceilf(a.v[0]), __builtin_ceilf(a.v[1]), __builtin_ceilf(a.v[2]), __builtin_ceilf(a.v[3])};
}
// Rounds to the nearest integer if |a| < 2^22: the sum with 1.5 * 2^23 has no bits left for a fraction.
GSCFD_INLINE Float round(Float a) { return (a.v + 12582912.0f) - 12582912.0f; }
GSCFD_INLINE Float scale_by_power(Float a, Float n) {
    const Integer4 exponent = (bits(n.v + 12582912.0f) - 0x4b400000) << 23;
    return from_bits(bits(a.v) + exponent);
}
GSCFD_INLINE Mask operator<(Float a, Float b) { return {a.v < b.v}; }
GSCFD_INLINE Mask operator<=(Float a, Float b) { return {a.v <= b.v}; }
GSCFD_INLINE Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
GSCFD_INLINE Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
GSCFD_INLINE Mask and_not(Mask a, Mask b) { return {a.m & ~b.m}; }
GSCFD_INLINE bool any(Mask a) {
    int64_t halves[2];
    memcpy(halves, &a.m, sizeof halves);
    return (halves[0] | halves[1]) != 0;
}
GSCFD_INLINE Float select(Mask m, Float a, Float b) { return blend(m.m, a, b); }
GSCFD_INLINE Float or_zero(Mask m, Float a) { return from_bits(bits(a.v) & m.m); }

#endif

// Sets out[i] to the sum of the lanes of a[i], added in a fixed order.
#if defined(__AVX2__) && defined(__FMA__)
GSCFD_INLINE __m256 sum_four_halves(const Float* a) {
    return _mm256_hadd_ps(_mm256_hadd_ps(fold(a[0]), fold(a[1])), _mm256_hadd_ps(fold(a[2]), fold(a[3])));
}
GSCFD_INLINE void sum_lanes4(const Float* a, float* out) {
    const __m256 halves = sum_four_halves(a);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
GSCFD_INLINE void sum_lanes8(const Float* a, float* out) {
    const __m256 first = sum_four_halves(a), second = sum_four_halves(a + 4);
    const __m256 low = _mm256_permute2f128_ps(first, second, 0x20), high = _mm256_permute2f128_ps(first, second, 0x31);
    _mm256_storeu_ps(out, _mm256_add_ps(low, high));
}
#else
GSCFD_INLINE void sum_lanes4(const Float* a, float* out) {
    for (int i = 0; i < 4; ++i) out[i] = (a[i].v[0] + a[i].v[1]) + (a[i].v[2] + a[i].v[3]);
}
GSCFD_INLINE void sum_lanes8(const Float* a, float* out) {
    sum_lanes4(a, out);
    sum_lanes4(a + 4, out + 4);
}
#endif

GSCFD_INLINE Float operator-(Float a) { return Float(0.0f) - a; }
GSCFD_INLINE Float& operator+=(Float& a, Float b) { return a = a + b; }
GSCFD_INLINE Float& operator-=(Float& a, Float b) { return a = a - b; }
GSCFD_INLINE Float& operator*=(Float& a, Float b) { return a = a * b; }
GSCFD_INLINE Mask operator>(Float a, Float b) { return b < a; }
GSCFD_INLINE Mask operator>=(Float a, Float b) { return b <= a; }

// 2^x for -126 <= x <= 127: the nearest integer power times a minimax polynomial. Relative error below 2e-7.
GSCFD_INLINE Float exp2(Float x) {
    const Float n = round(x), f = x - n;
    Float p = fma(Float(1.32764716e-3f), f, Float(9.67554137e-3f));
    p = fma(p, f, Float(5.55071328e-2f));
    p = fma(p, f, Float(2.40221197e-1f));
    p = fma(p, f, Float(6.93146967e-1f));
    p = fma(p, f, Float(1.00000007f));
    return scale_by_power(p, n);
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
