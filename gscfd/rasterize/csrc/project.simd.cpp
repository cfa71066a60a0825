#include "project.h"

#include "simd.h"

namespace gscfd {
namespace GSCFD_ISA {
namespace {

constexpr int kWidth = Float::width;

struct Vec3 {
    Float x, y, z;
};
GSCFD_INLINE Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
GSCFD_INLINE Vec3 operator*(Float s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
GSCFD_INLINE Vec3 scaled(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
GSCFD_INLINE Float dot(Vec3 a, Vec3 b) { return fma(a.x, b.x, fma(a.y, b.y, a.z * b.z)); }
GSCFD_INLINE Vec3 cross(Vec3 a, Vec3 b) {
    return {fnma(a.z, b.y, a.y * b.z), fnma(a.x, b.z, a.z * b.x), fnma(a.y, b.x, a.x * b.y)};
}

struct Rotation {
    Vec3 row0, row1, row2;
};
GSCFD_INLINE Vec3 row_times(Vec3 a, const Rotation& r) { return a.x * r.row0 + a.y * r.row1 + a.z * r.row2; }
GSCFD_INLINE Vec3 times(const Rotation& r, Vec3 a) { return {dot(r.row0, a), dot(r.row1, a), dot(r.row2, a)}; }

// A lane per Gaussian: values [first, first + kWidth) of an [N, size] array; lanes at and after `end` repeat the last.
template <int size>
GSCFD_INLINE void gather(const float* values, int64_t first, int64_t end, Float* out) {
    float lanes[size][kWidth];
    for (int l = 0; l < kWidth; ++l) {
        const int64_t i = first + l < end ? first + l : end - 1;
        for (int k = 0; k < size; ++k) lanes[k][l] = values[size * i + k];
    }
    for (int k = 0; k < size; ++k) out[k] = load(lanes[k]);
}

template <int size>
GSCFD_INLINE void scatter(const Float* in, int64_t first, int64_t end, float* values) {
    float lanes[size][kWidth];
    for (int k = 0; k < size; ++k) store(lanes[k], in[k]);
    const int valid = end - first < kWidth ? static_cast<int>(end - first) : kWidth;
    for (int l = 0; l < valid; ++l)
        for (int k = 0; k < size; ++k) values[size * (first + l) + k] = lanes[k][l];
}

struct Camera {
    Rotation rotation;
    Vec3 translation;
    Float fx, fy, cx, cy;
    // Ratios x/z and y/z are held inside the image plus 30 % of half its size where they enter the Jacobian.
    Float x_low, x_high, y_low, y_high;
};

GSCFD_INLINE Camera read_camera(const Projection& p, int64_t view) {
    const float *m = p.viewmats + 16 * view, *k = p.intrinsics + 9 * view;
    const float fx = k[0], fy = k[4], cx = k[2], cy = k[5];
    const float margin_x = 0.15f * p.width / fx, margin_y = 0.15f * p.height / fy;
    return {{{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}},
            {m[3], m[7], m[11]},
            fx,
            fy,
            cx,
            cy,
            -(cx / fx + margin_x),
            (p.width - cx) / fx + margin_x,
            -(cy / fy + margin_y),
            (p.height - cy) / fy + margin_y};
}

struct Shape {
    Float w, x, y, z, inverse_norm;  // unit quaternion
    Rotation rotation;
    Vec3 scale;
};

GSCFD_INLINE Shape read_shape(const Projection& p, int64_t first, int64_t end) {
    Float q[4], s[3];
    gather<4>(p.quats, first, end, q);
    gather<3>(p.scales, first, end, s);
    const Float norm2 = fma(q[0], q[0], fma(q[1], q[1], fma(q[2], q[2], q[3] * q[3])));
    Shape g;
    g.inverse_norm = Float(1.0f) / max(sqrt(norm2), Float(1e-12f));
    const Float w = g.w = q[0] * g.inverse_norm, x = g.x = q[1] * g.inverse_norm;
    const Float y = g.y = q[2] * g.inverse_norm, z = g.z = q[3] * g.inverse_norm;
    const Float one(1.0f), two(2.0f);
    g.rotation = {{one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)},
                  {two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)},
                  {two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)}};
    g.scale = {s[0], s[1], s[2]};
    return g;
}

// The 2D covariance is M M^T + eps2d with M = J R_camera R_quat diag(scale): its rows and what leads to them.
struct Splat {
    Vec3 position;            // in camera space
    Float inverse_z;
    Float ratio_x, ratio_y;   // x/z, y/z held inside the margins
    Vec3 jw0, jw1;            // rows of J R_camera
    Vec3 n0, n1;              // rows of J R_camera R_quat
    Vec3 m0, m1;              // rows of M
    Vec3 normal;              // m0 x m1
    Float a, b, c, det;       // covariance [[a, b], [b, c]] and its determinant
};

GSCFD_INLINE Splat splat(const Camera& camera, const Shape& shape, Vec3 mean, Float eps2d) {
    Splat s;
    s.position = times(camera.rotation, mean) + camera.translation;
    s.inverse_z = Float(1.0f) / s.position.z;
    s.ratio_x = min(max(s.position.x * s.inverse_z, camera.x_low), camera.x_high);
    s.ratio_y = min(max(s.position.y * s.inverse_z, camera.y_low), camera.y_high);
    const Float jx = camera.fx * s.inverse_z, jy = camera.fy * s.inverse_z;
    s.jw0 = jx * (camera.rotation.row0 + (-s.ratio_x) * camera.rotation.row2);
    s.jw1 = jy * (camera.rotation.row1 + (-s.ratio_y) * camera.rotation.row2);
    s.n0 = row_times(s.jw0, shape.rotation);
    s.n1 = row_times(s.jw1, shape.rotation);
    s.m0 = scaled(s.n0, shape.scale);
    s.m1 = scaled(s.n1, shape.scale);
    s.normal = cross(s.m0, s.m1);
    const Float a0 = dot(s.m0, s.m0), c0 = dot(s.m1, s.m1);
    s.a = a0 + eps2d;
    s.b = dot(s.m0, s.m1);
    s.c = c0 + eps2d;
    // det(M M^T + eps) by Cauchy-Binet: a sum of squares, exact to rounding also for needles.
    s.det = dot(s.normal, s.normal) + eps2d * (a0 + c0) + eps2d * eps2d;
    return s;
}

// Half the side of a splat's box in units of its standard deviation: where alpha falls to kMinAlpha, 3.33 at most
// (opacity-aware bounding boxes, StopThePop, Radl et al. 2024, appendix B.2); negative where it never reaches it.
GSCFD_INLINE Float box_extent(const Projection& p, int64_t first, int64_t end) {
    float extent[kWidth];
    for (int l = 0; l < kWidth; ++l) {
        const float opacity = p.opacities[first + l < end ? first + l : end - 1];
        if (!(opacity >= kMinAlpha)) {
            extent[l] = -1.0f;
            continue;
        }
        const float e = __builtin_sqrtf(2.0f * __builtin_logf(opacity / kMinAlpha));
        extent[l] = e < 3.33f ? e : 3.33f;
    }
    return load(extent);
}

}  // namespace

void project(const Projection& p, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kWidth) {
        const Shape shape = read_shape(p, first, end);
        const Float extent = box_extent(p, first, end);
        Float mean[3];
        gather<3>(p.means, first, end, mean);
        for (int64_t view = 0; view < p.views; ++view) {
            const Camera camera = read_camera(p, view);
            const Splat s = splat(camera, shape, {mean[0], mean[1], mean[2]}, p.eps2d);
            const Float x = fma(camera.fx * s.position.x, s.inverse_z, camera.cx);
            const Float y = fma(camera.fy * s.position.y, s.inverse_z, camera.cy);
            const Float radius_x = ceil(extent * sqrt(s.a)), radius_y = ceil(extent * sqrt(s.c));
            // Comparisons that NaN fails: a Gaussian that is not finite is culled.
            Mask visible = (s.position.z >= Float(p.near_plane)) & (s.position.z <= Float(p.far_plane)) &
                           (s.det > Float(0.0f)) & (s.det < Float(3e38f)) & (extent >= Float(0.0f)) &
                           (x + radius_x > Float(0.0f)) & (x - radius_x < Float(static_cast<float>(p.width))) &
                           (y + radius_y > Float(0.0f)) & (y - radius_y < Float(static_cast<float>(p.height)));
            visible = and_not(visible, (radius_x <= Float(p.radius_clip)) & (radius_y <= Float(p.radius_clip)));

            const Float root_c = sqrt(s.c), root_det = sqrt(s.det);
            const Float means2d[2] = {or_zero(visible, x), or_zero(visible, y)};
            const Float factors[3] = {or_zero(visible, root_c / root_det), or_zero(visible, -s.b / (root_c * root_det)),
                                      or_zero(visible, Float(1.0f) / root_c)};
            const Float conics[3] = {or_zero(visible, s.c / s.det), or_zero(visible, -s.b / s.det),
                                     or_zero(visible, s.a / s.det)};
            const Float depths[1] = {or_zero(visible, s.position.z)};
            const Float largest(1e9f);
            const Float radii[2] = {or_zero(visible, min(radius_x, largest)), or_zero(visible, min(radius_y, largest))};
            scatter<2>(means2d, first, end, p.means2d + 2 * view * p.count);
            scatter<3>(factors, first, end, p.factors + 3 * view * p.count);
            scatter<3>(conics, first, end, p.conics + 3 * view * p.count);
            scatter<1>(depths, first, end, p.depths + view * p.count);
            float lanes[2][kWidth];
            store(lanes[0], radii[0]);
            store(lanes[1], radii[1]);
            int32_t* out = p.radii + 2 * (view * p.count + first);
            for (int l = 0; l < kWidth && first + l < end; ++l) {
                out[2 * l] = static_cast<int32_t>(lanes[0][l]);
                out[2 * l + 1] = static_cast<int32_t>(lanes[1][l]);
            }
        }
    }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
