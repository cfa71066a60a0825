// Conversion between [N, size] arrays and Float vectors with one item per lane. For *.simd.cpp files only.
#pragma once

#include "simd.h"

namespace gscfd {
namespace GSCFD_ISA {

struct Vec3 {
    Float x, y, z;
};
GSCFD_INLINE Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
GSCFD_INLINE Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
GSCFD_INLINE Vec3 operator*(Float s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
GSCFD_INLINE Vec3 scaled(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
GSCFD_INLINE Float dot(Vec3 a, Vec3 b) { return fma(a.x, b.x, fma(a.y, b.y, a.z * b.z)); }
GSCFD_INLINE Vec3 cross(Vec3 a, Vec3 b) {
    return {fnma(a.z, b.y, a.y * b.z), fnma(a.x, b.z, a.z * b.x), fnma(a.y, b.x, a.x * b.y)};
}
GSCFD_INLINE Vec3 or_zero(Mask m, Vec3 a) { return {or_zero(m, a.x), or_zero(m, a.y), or_zero(m, a.z)}; }

// Reads items [first, first + Float::width) of an array: the first `size` floats of rows that are `stride` floats
// apart. Lanes from `end` on repeat the last item.
template <int size>
GSCFD_INLINE void gather(const float* values, int64_t stride, int64_t first, int64_t end, Float* out) {
    float lanes[size][Float::width];
    for (int l = 0; l < Float::width; ++l) {
        const int64_t i = first + l < end ? first + l : end - 1;
        for (int k = 0; k < size; ++k) lanes[k][l] = values[stride * i + k];
    }
    for (int k = 0; k < size; ++k) out[k] = load(lanes[k]);
}

// Writes what gather reads. Lanes from `end` on are dropped.
template <int size>
GSCFD_INLINE void scatter(const Float* in, int64_t stride, int64_t first, int64_t end, float* values) {
    float lanes[size][Float::width];
    for (int k = 0; k < size; ++k) store(lanes[k], in[k]);
    const int64_t valid = end - first < Float::width ? end - first : Float::width;
    for (int64_t l = 0; l < valid; ++l)
        for (int k = 0; k < size; ++k) values[stride * (first + l) + k] = lanes[k][l];
}

GSCFD_INLINE Vec3 gather3(const float* values, int64_t first, int64_t end) {
    Float v[3];
    gather<3>(values, 3, first, end, v);
    return {v[0], v[1], v[2]};
}
GSCFD_INLINE void scatter3(Vec3 v, int64_t first, int64_t end, float* values) {
    const Float lanes[3] = {v.x, v.y, v.z};
    scatter<3>(lanes, 3, first, end, values);
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
