// The arithmetic of surface noise, one source for C++ and CUDA: smoothing and normals of the depth image, cell keys,
// column enumeration, claims, and counter-based random numbers. docs/noise.md states the algorithm.
//
// Plain functions on plain structs. Decisions that must agree between devices (which column, which layer, which pixel)
// use offsets from the sample, which float32 holds to 1e-6 pixel. Only the sample's position is double.
#pragma once

#ifdef __CUDACC_RTC__
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long;
using uint64_t = unsigned long;
#else
#include <math.h>
#include <stdint.h>
#include <string.h>
#endif

#ifdef __CUDACC__
#define GSCFD_HD static __host__ __device__ __forceinline__
#else
#define GSCFD_HD static inline __attribute__((always_inline))
#endif
#ifdef __CUDA_ARCH__
#define GSCFD_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define GSCFD_UNROLL
#else
#define GSCFD_UNROLL _Pragma("GCC unroll 16")
#endif

namespace gscfd {
namespace noise {

constexpr int kHalfBox = 8;                 // columns searched on each side of a sample
constexpr float kMaxTangent = 9.94987437f;  // sqrt(99): steeper tangent planes are tilted to an incidence cosine of .1
constexpr float kRidge = 1e-3f;             // ridge term of the normal fit, in squared samples
constexpr float kReach = 8;                 // depth range of the smoothing, in pitches
constexpr double kMaxColumn = (1 << 20) - 32;
constexpr double kMaxLayer = (1 << 18) - 32;
constexpr uint64_t kNoKey = ~uint64_t(0);

// Parameters of one call. _Geometry in gscfd/noise_kernels mirrors this struct.
struct Geometry {
    int32_t render_width, render_height, latent_width, latent_height;
    float pitch, layer_depth, opacity_threshold, near_plane;
    int32_t normal_radius, smoothing;
};

struct Camera {
    double origin[3], cx, cy, inverse_fx, inverse_fy;
    float rotation[9];  // world to camera, row-major
    float fx, fy;
    float half_x, half_y;  // half a sample on the plane z = 1
};

// viewmat: 4 x 4 world to camera; K: 3 x 3 in pixels, both row-major.
GSCFD_HD Camera make_camera(const float* viewmat, const float* K) {
    Camera camera;
    for (int i = 0; i < 3; ++i) {
        camera.origin[i] = 0;
        for (int j = 0; j < 3; ++j) {
            camera.rotation[3 * i + j] = viewmat[4 * i + j];
            camera.origin[i] -= double(viewmat[4 * j + i]) * double(viewmat[4 * j + 3]);
        }
    }
    camera.fx = K[0];
    camera.fy = K[4];
    camera.cx = K[2];
    camera.cy = K[5];
    camera.inverse_fx = 1.0 / K[0];
    camera.inverse_fy = 1.0 / K[4];
    camera.half_x = 0.5f / camera.fx;
    camera.half_y = 0.5f / camera.fy;
    return camera;
}

// Whether a sample shows the surface. An infinite or NaN depth fails the comparisons.
GSCFD_HD bool covers(const Geometry& g, float depth, float opacity) {
    return opacity > g.opacity_threshold && depth > g.near_plane && depth < 1e30f;
}

// The latent row (or column) that contains the center of a render row (or column).
GSCFD_HD int latent_index(int index, int render_size, int latent_size) {
    return int((2 * int64_t(index) + 1) * latent_size / (2 * int64_t(render_size)));
}

// The first render row (or column) of a latent row (or column).
GSCFD_HD int first_render_index(int latent, int render_size, int latent_size) {
    return int((2 * int64_t(latent) * render_size + latent_size - 1) / (2 * int64_t(latent_size)));
}

// ---- Smoothing ------------------------------------------------------------------------------------------------------

// Distance to the neighbors in a round's first pass, in samples: at most half a latent pixel. Each further pass halves
// it, down to 1. Returns 0 if the samples are too coarse to smooth.
GSCFD_HD int first_spacing(const Geometry& g) {
    if (g.smoothing == 0) return 0;
    int samples = 1;
    while (2 * samples * g.latent_width <= g.render_width && 2 * samples * g.latent_height <= g.render_height) {
        samples *= 2;
    }
    return samples / 2;
}

// Width of the border of zeros around the masked image, which saves testing whether a neighbor exists.
GSCFD_HD int margin(const Geometry& g) {
    const int spacing = first_spacing(g);
    return g.normal_radius > spacing ? g.normal_radius : spacing;
}

// Adds two opposite neighbors (1 / depth; 0: none) if both lie on the sample's surface: |z0 - z| < reach.
GSCFD_HD void add_pair(float inverse0, float a, float b, float reach, float& sum, float& count) {
    const float limit = reach * inverse0;
    const bool near = (fabsf(a - inverse0) < limit * a) & (fabsf(b - inverse0) < limit * b);
    sum += near ? a + b : 0.0f;
    count += near ? 2.0f : 0.0f;
}

// Mean of 1 / depth over a sample and its pairs of opposite neighbors. On a plane, 1 / z is linear in the image, so
// complete pairs leave it unchanged right up to its edges. 0 stays 0.
GSCFD_HD float smoothed(const float* center, int64_t stride, int spacing, float reach) {
    const int64_t down = spacing * stride;
    float sum = center[0], count = 1;
    add_pair(center[0], center[-spacing], center[spacing], reach, sum, count);
    add_pair(center[0], center[-down], center[down], reach, sum, count);
    add_pair(center[0], center[-down - spacing], center[down + spacing], reach, sum, count);
    add_pair(center[0], center[-down + spacing], center[down - spacing], reach, sum, count);
    return sum / count;
}

// ---- Tangent planes -------------------------------------------------------------------------------------------------

// Normal equations for the slope of 1/z per sample, through the center sample. On a plane, 1/z is linear in the image.
struct SlopeFit {
    float xx = kRidge, xy = 0, yy = kRidge, bx = 0, by = 0;
};

// Largest |z - center z| / center z at which the sample at offset (dx, dy) counts as part of the same plane.
GSCFD_HD float neighbor_limit(float fx, float fy, int dx, int dy) {
    const float x = dx / fx, y = dy / fy;
    return kMaxTangent * sqrtf(x * x + y * y);
}

// Adds the sample at offset (dx, dy). inverse: 1 / z, or 0 if there is no sample. limit: from neighbor_limit.
GSCFD_HD void add_neighbor(SlopeFit& fit, float z0, float inverse0, float z, float inverse, float dx, float dy,
                           float limit) {
    const float step = z0 - z;
    const float weight = (inverse > 0 && fabsf(step) <= limit * z0) ? 1.0f : 0.0f;
    const float delta = weight * step * inverse0 * inverse;
    fit.xx += weight * dx * dx;
    fit.xy += weight * dx * dy;
    fit.yy += weight * dy * dy;
    fit.bx += delta * dx;
    fit.by += delta * dy;
}

// A render sample's tangent plane in world axes, and the range of columns that may fall into the sample.
struct Tangent {
    int32_t axis;                        // world axis of the normal's largest component
    int32_t outward;                     // sign of the outward normal along that axis: +1 or -1
    float slope_u, slope_v;              // normal_u / normal_k, normal_v / normal_k
    float low_u, high_u, low_v, high_v;  // extent on the plane along u and v, from the sample's center, world units
};

GSCFD_HD float pick(int axis, float x, float y, float z) { return axis == 0 ? x : (axis == 1 ? y : z); }
GSCFD_HD double pick(int axis, double x, double y, double z) { return axis == 0 ? x : (axis == 1 ? y : z); }

// (x, y, 1): the sample's ray in the camera frame. z, inverse: depth and 1 / depth.
GSCFD_HD Tangent tangent_plane(const Camera& camera, float x, float y, float z, float inverse, const SlopeFit& fit) {
    const float determinant = fit.xx * fit.yy - fit.xy * fit.xy;
    const float fx = camera.fx, fy = camera.fy;
    const float a = (fit.bx * fit.yy - fit.by * fit.xy) / determinant * fx;
    const float b = (fit.by * fit.xx - fit.bx * fit.xy) / determinant * fy;
    const float c = inverse - a * x - b * y;
    // In the camera frame, the normal n satisfies n . ray = 1 / z. At grazing incidence, tilt it towards the ray.
    const float along = inverse / (x * x + y * y + 1);
    const float across_x = a - along * x, across_y = b - along * y, across_z = c - along;
    const float across = sqrtf(across_x * across_x + across_y * across_y + across_z * across_z);
    const float most = kMaxTangent * along * sqrtf(x * x + y * y + 1);
    const float factor = across > most ? most / across : 1.0f;
    const float nx = along * x + factor * across_x, ny = along * y + factor * across_y, nz = along + factor * across_z;

    const float* r = camera.rotation;
    const float m0 = r[0] * nx + r[3] * ny + r[6] * nz;
    const float m1 = r[1] * nx + r[4] * ny + r[7] * nz;
    const float m2 = r[2] * nx + r[5] * ny + r[8] * nz;
    const float size0 = fabsf(m0), size1 = fabsf(m1), size2 = fabsf(m2);
    Tangent tangent;
    const int axis = size1 > size0 ? (size2 > size1 ? 2 : 1) : (size2 > size0 ? 2 : 0);
    const float mk = pick(axis, m0, m1, m2);
    tangent.axis = axis;
    tangent.outward = mk > 0 ? -1 : 1;
    tangent.slope_u = pick(axis, m1, m2, m0) / mk;
    tangent.slope_v = pick(axis, m2, m0, m1) / mk;

    // Offsets from the sample's point to where the four corner rays meet the plane.
    float low0 = 0, low1 = 0, low2 = 0, high0 = 0, high1 = 0, high2 = 0;
    GSCFD_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
        const float dx = corner & 1 ? camera.half_x : -camera.half_x, dy = corner & 2 ? camera.half_y : -camera.half_y;
        const float tilt = nx * dx + ny * dy;
        const float corner_inverse = inverse + tilt > 0.1f * inverse ? inverse + tilt : 0.1f * inverse;
        const float corner_z = 1.0f / corner_inverse;
        const float dz = (inverse - corner_inverse) * z * corner_z;
        const float ox = dx * corner_z + x * dz, oy = dy * corner_z + y * dz;
        const float w0 = r[0] * ox + r[3] * oy + r[6] * dz;
        const float w1 = r[1] * ox + r[4] * oy + r[7] * dz;
        const float w2 = r[2] * ox + r[5] * oy + r[8] * dz;
        low0 = w0 < low0 ? w0 : low0;
        low1 = w1 < low1 ? w1 : low1;
        low2 = w2 < low2 ? w2 : low2;
        high0 = w0 > high0 ? w0 : high0;
        high1 = w1 > high1 ? w1 : high1;
        high2 = w2 > high2 ? w2 : high2;
    }
    tangent.low_u = pick(axis, low1, low2, low0);
    tangent.low_v = pick(axis, low2, low0, low1);
    tangent.high_u = pick(axis, high1, high2, high0);
    tangent.high_v = pick(axis, high2, high0, high1);
    return tangent;
}

// ---- Columns --------------------------------------------------------------------------------------------------------

// Position of a sample among the columns of its axis.
struct Place {
    double along;  // coordinate k, world units
    int32_t column_u, column_v;
    float within_u, within_v;  // position inside that column, in [0, 1) pitches
    int32_t valid;             // 0 if out of the range of the keys
};

// (x, y, 1): the sample's ray.
GSCFD_HD Place place(const Camera& camera, double x, double y, float depth, int axis, double inverse_pitch,
                     double inverse_layer) {
    const double z = depth;
    const float* r = camera.rotation;
    const double p0 = camera.origin[0] + z * (r[0] * x + r[3] * y + r[6]);
    const double p1 = camera.origin[1] + z * (r[1] * x + r[4] * y + r[7]);
    const double p2 = camera.origin[2] + z * (r[2] * x + r[5] * y + r[8]);
    const double u = pick(axis, p1, p2, p0) * inverse_pitch, v = pick(axis, p2, p0, p1) * inverse_pitch;
    const double floor_u = floor(u), floor_v = floor(v);
    Place result;
    result.along = pick(axis, p0, p1, p2);
    const bool valid =
        fabs(floor_u) < kMaxColumn && fabs(floor_v) < kMaxColumn && fabs(result.along * inverse_layer) < kMaxLayer;
    result.valid = valid;
    result.column_u = valid ? int32_t(floor_u) : 0;
    result.column_v = valid ? int32_t(floor_v) : 0;
    result.within_u = float(u - floor_u);
    result.within_v = float(v - floor_v);
    return result;
}

// First and last column, relative to the sample's own, whose center may lie in [low, high] (pitches from the sample).
GSCFD_HD int first_column(float within, float low) {
    const float column = ceilf(within + low - 0.51f);
    return int(column > -kHalfBox ? (column < kHalfBox ? column : kHalfBox) : -kHalfBox);
}
GSCFD_HD int last_column(float within, float high) {
    const float column = floorf(within + high - 0.49f);
    return int(column < kHalfBox - 1 ? (column > -kHalfBox ? column : -kHalfBox) : kHalfBox - 1);
}

// Linear map from an offset (du, dv) in a sample's plane, in world units, to twice the offset in the image times depth.
struct Projection {
    float xu, xv, yu, yv, zu, zv;
};

GSCFD_HD Projection project_plane(const Camera& camera, float x, float y, const Tangent& tangent) {
    const float* r = camera.rotation;
    const int k = tangent.axis, u = k == 2 ? 0 : k + 1, v = k == 0 ? 2 : k - 1;
    const float zu = r[6 + u] - tangent.slope_u * r[6 + k], zv = r[6 + v] - tangent.slope_v * r[6 + k];
    const float xu = r[u] - tangent.slope_u * r[k], xv = r[v] - tangent.slope_v * r[k];
    const float yu = r[3 + u] - tangent.slope_u * r[3 + k], yv = r[3 + v] - tangent.slope_v * r[3 + k];
    const float sx = 2 * camera.fx, sy = 2 * camera.fy;
    return {sx * (xu - x * zu), sx * (xv - x * zv), sy * (yu - y * zu), sy * (yv - y * zv), zu, zv};
}

// Whether the plane's point at offset (du, dv) projects into the sample.
GSCFD_HD bool projects_inside(const Projection& projection, float z, float du, float dv) {
    const float depth = z + projection.zu * du + projection.zv * dv;
    const float x = projection.xu * du + projection.xv * dv, y = projection.yu * du + projection.yv * dv;
    return depth > 0 && -depth <= x && x < depth && -depth <= y && y < depth;
}

// ---- Keys -----------------------------------------------------------------------------------------------------------

// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
GSCFD_HD uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

// Axis (2 bits), sign (1), layer (19, added later), column u (21), column v (21), most significant first.
GSCFD_HD uint64_t column_key(int axis, int outward, int column_u, int column_v) {
    return uint64_t(axis) << 62 | uint64_t(outward > 0) << 61 | uint64_t(column_u + (1 << 20)) << 21 |
           uint64_t(column_v + (1 << 20));
}

// Key of a column's cell at coordinate `along`. Each column has its own layer offset, so that the layers' borders form
// no rings.
GSCFD_HD uint64_t cell_key(uint64_t column, double along, double inverse_layer) {
    const double jitter = double(mix(column) >> 40) * (1.0 / 16777216.0);
    const int layer = int(floor(along * inverse_layer + jitter));
    return column | uint64_t(layer + (1 << 18)) << 42;
}

// Claim of a sample on a cell. The smallest claim wins: the outermost sample, then the one with the smallest index.
GSCFD_HD uint64_t claim_of(double along, int outward, double inverse_pitch, uint32_t sample) {
    const int64_t height = int64_t(floor(outward * along * inverse_pitch * 16));
    return uint64_t(uint32_t(int64_t(0x80000000) - height)) << 32 | sample;
}

// ---- Random numbers -------------------------------------------------------------------------------------------------

// Unlike the decisions above, values may differ in the last bits between devices, so CUDA uses faster arithmetic.
#ifdef __CUDA_ARCH__
GSCFD_HD float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
GSCFD_HD float quotient(float a, float b) { return __fdividef(a, b); }
GSCFD_HD float root(float x) {
    float result;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
#else
GSCFD_HD float multiply_add(float a, float b, float c) { return a * b + c; }
GSCFD_HD float quotient(float a, float b) { return a / b; }
GSCFD_HD float root(float x) { return sqrtf(x); }
#endif

struct Words {
    uint32_t a, b, c, d;
};

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
GSCFD_HD Words philox(Words x, uint32_t key0, uint32_t key1) {
    GSCFD_UNROLL
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t(0xD2511F53u) * x.a, q = uint64_t(0xCD9E8D57u) * x.c;
        x = {uint32_t(q >> 32) ^ x.b ^ key0, uint32_t(q), uint32_t(p >> 32) ^ x.d ^ key1, uint32_t(p)};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return x;
}

// ln((x >> 1) + .5) - 31 ln 2 by ln m = 2 artanh((m - 1) / (m + 1)), m in [sqrt(.5), sqrt(2)); error below 2e-7.
GSCFD_HD float log_uniform(uint32_t x) {
    const float value = float(int32_t(x >> 1)) + 0.5f;
    int32_t bits;
    memcpy(&bits, &value, 4);
    const int32_t exponent = (bits - 0x3F3504F3) >> 23;
    const int32_t mantissa = bits - exponent * (1 << 23);
    float m;
    memcpy(&m, &mantissa, 4);
    const float t = quotient(m - 1.0f, m + 1.0f), s = t * t;
    float series = multiply_add(s, 2.0f / 9, 2.0f / 7);
    series = multiply_add(s, series, 2.0f / 5);
    series = multiply_add(s, series, 2.0f / 3);
    series = multiply_add(s, series, 2.0f);
    return multiply_add(float(exponent - 31), 0.693147181f, t * series);
}

// (radius cos, radius sin): two independent N(0, 1) samples from two words (Box and Muller 1958).
GSCFD_HD void box_muller(uint32_t a, uint32_t b, float& first, float& second) {
    const float radius = root(-2.0f * log_uniform(a));
    const uint32_t quarter = (b + (1u << 29)) >> 30;
    const float angle = float(int32_t(b - (quarter << 30))) * 1.46291808e-9f;  // 2 pi / 2^32
    const float s = angle * angle;
    float sine = multiply_add(s, 1.0f / 362880, -1.0f / 5040), cosine = multiply_add(s, 1.0f / 40320, -1.0f / 720);
    sine = multiply_add(s, sine, 1.0f / 120), cosine = multiply_add(s, cosine, 1.0f / 24);
    sine = multiply_add(s, sine, -1.0f / 6), cosine = multiply_add(s, cosine, -1.0f / 2);
    sine = angle * multiply_add(s, sine, 1.0f), cosine = multiply_add(s, cosine, 1.0f);
    const float x = (quarter & 1) ? sine : cosine, y = (quarter & 1) ? cosine : sine;
    const float sign_x = ((quarter + 1) & 2) ? -radius : radius, sign_y = (quarter & 2) ? -radius : radius;
    first = x * sign_x;
    second = y * sign_y;
}

// Four N(0, 1) samples of a cell: channels 4 block to 4 block + 3.
GSCFD_HD void normals(uint64_t seed, uint32_t stream, uint64_t cell, uint32_t node, uint32_t block, float out[4]) {
    const Words counter = {uint32_t(cell), uint32_t(cell >> 32), node, stream << 24 | block};
    const Words x = philox(counter, uint32_t(seed), uint32_t(seed >> 32));
    box_muller(x.a, x.b, out[0], out[1]);
    box_muller(x.c, x.d, out[2], out[3]);
}

// Key of a view, for noise that differs between views: a hash of the bits of its matrices (4 x 4 and 3 x 3).
GSCFD_HD uint32_t view_key(const float* viewmat, const float* K) {
    uint64_t hash = 0;
    for (int i = 0; i < 25; ++i) {
        const float value = i < 16 ? viewmat[i] : K[i - 16];
        uint32_t bits;
        memcpy(&bits, &value, 4);
        hash = mix(hash + 0x9E3779B97F4A7C15ull + bits);
    }
    return uint32_t(hash >> 32);
}

}  // namespace noise
}  // namespace gscfd
