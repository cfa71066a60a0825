#include "project.h"

#include "lanes.h"

namespace gscfd {
namespace GSCFD_ISA {
namespace {

constexpr int kWidth = Float::width;

struct Rotation {
    Vec3 row0, row1, row2;
};
GSCFD_INLINE Vec3 row_times(Vec3 a, const Rotation& r) { return a.x * r.row0 + a.y * r.row1 + a.z * r.row2; }
GSCFD_INLINE Vec3 times(const Rotation& r, Vec3 a) { return {dot(r.row0, a), dot(r.row1, a), dot(r.row2, a)}; }

struct Camera {
    Rotation rotation;
    Vec3 translation;
    Float fx, fy, cx, cy;
    // Limits of x/z and y/z in the Jacobian: the image plus 30 % of half its size on each side.
    Float x_low, x_high, y_low, y_high;
    bool ortho;
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
            (p.height - cy) / fy + margin_y,
            p.ortho};
}

struct Shape {
    Float w, x, y, z, inverse_norm;  // unit quaternion
    Rotation rotation;
    Vec3 scale;
};

GSCFD_INLINE Shape read_shape(const Projection& p, int64_t first, int64_t end) {
    Float q[4], s[3];
    gather<4>(p.quats, 4, first, end, q);
    gather<3>(p.scales, 3, first, end, s);
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

// The 2D covariance M M^T + eps2d, where M = J R_camera R_quat diag(scale), and its intermediate results.
struct Splat {
    Vec3 position;  // in camera space
    Float inverse_z;
    Float ratio_x, ratio_y;  // x/z and y/z, clamped to the camera's limits
    Vec3 jw0, jw1;           // rows of J R_camera
    Vec3 n0, n1;             // rows of J R_camera R_quat
    Vec3 m0, m1;             // rows of M
    Vec3 normal;             // m0 x m1
    Float a, b, c, det;      // covariance [[a, b], [b, c]] and its determinant
    Float bare_det;          // determinant of M M^T
};

GSCFD_INLINE Splat splat(const Camera& camera, const Shape& shape, Vec3 mean, Float eps2d) {
    Splat s;
    s.position = times(camera.rotation, mean) + camera.translation;
    s.inverse_z = Float(1.0f) / s.position.z;
    s.ratio_x = min(max(s.position.x * s.inverse_z, camera.x_low), camera.x_high);
    s.ratio_y = min(max(s.position.y * s.inverse_z, camera.y_low), camera.y_high);
    if (camera.ortho) {
        s.jw0 = camera.fx * camera.rotation.row0;
        s.jw1 = camera.fy * camera.rotation.row1;
    } else {
        const Float jx = camera.fx * s.inverse_z, jy = camera.fy * s.inverse_z;
        s.jw0 = jx * (camera.rotation.row0 + (-s.ratio_x) * camera.rotation.row2);
        s.jw1 = jy * (camera.rotation.row1 + (-s.ratio_y) * camera.rotation.row2);
    }
    s.n0 = row_times(s.jw0, shape.rotation);
    s.n1 = row_times(s.jw1, shape.rotation);
    s.m0 = scaled(s.n0, shape.scale);
    s.m1 = scaled(s.n1, shape.scale);
    s.normal = cross(s.m0, s.m1);
    const Float a0 = dot(s.m0, s.m0), c0 = dot(s.m1, s.m1);
    s.a = a0 + eps2d;
    s.b = dot(s.m0, s.m1);
    s.c = c0 + eps2d;
    // det(M M^T + eps) by Cauchy-Binet: a sum of squares, so accurate for needles too.
    s.bare_det = dot(s.normal, s.normal);
    s.det = s.bare_det + eps2d * (a0 + c0) + eps2d * eps2d;
    return s;
}

// Half the side of a splat's box in standard deviations: the distance at which alpha falls to kMinAlpha, at most 3.33
// (opacity-aware bounding boxes, StopThePop, Radl et al. 2024, appendix B.2). NaN if alpha never reaches kMinAlpha.
// Writes the logarithms [N] of the compensated opacities.
GSCFD_INLINE Float box_extent(const Projection& p, Float compensation, int64_t first, int64_t end,
                              float* log_opacities) {
    float logs[kWidth], factors[kWidth];
    store(factors, compensation);
    for (int l = 0; l < kWidth; ++l) {
        const int64_t i = first + l < end ? first + l : end - 1;
        logs[l] = __builtin_log2f(p.opacities[i] * factors[l]);
        if (first + l < end) log_opacities[i] = logs[l];
    }
    const float two_ln2 = 1.3862943611198906f;
    // min returns its second argument if either is NaN.
    return min(Float(3.33f), sqrt(Float(two_ln2) * (load(logs) - Float(kLog2MinAlpha))));
}

}  // namespace

void project(const Projection& p, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kWidth) {
        const Shape shape = read_shape(p, first, end);
        Float extent(0.0f);
        if (!p.antialiased) extent = box_extent(p, Float(1.0f), first, end, p.log_opacities);
        const Vec3 mean = gather3(p.means, first, end);
        for (int64_t view = 0; view < p.views; ++view) {
            const Camera camera = read_camera(p, view);
            const Splat s = splat(camera, shape, mean, p.eps2d);
            const Float scale = p.ortho ? Float(1.0f) : s.inverse_z;
            const Float x = fma(camera.fx * s.position.x, scale, camera.cx);
            const Float y = fma(camera.fy * s.position.y, scale, camera.cy);
            Float compensation(1.0f);
            if (p.antialiased) {
                compensation = sqrt(s.bare_det) / sqrt(s.det);
                extent = box_extent(p, compensation, first, end, p.log_opacities + view * p.count);
            }
            const Float radius_x = ceil(extent * sqrt(s.a)), radius_y = ceil(extent * sqrt(s.c));
            // NaN fails every comparison, so a Gaussian that is not finite is culled.
            Mask visible = (s.position.z >= Float(p.near_plane)) & (s.position.z <= Float(p.far_plane)) &
                           (s.det > Float(0.0f)) & (s.det < Float(3e38f)) & (extent >= Float(0.0f)) &
                           (x + radius_x > Float(0.0f)) & (x - radius_x < Float(float(p.width))) &
                           (y + radius_y > Float(0.0f)) & (y - radius_y < Float(float(p.height)));
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
            scatter<2>(means2d, 2, first, end, p.means2d + 2 * view * p.count);
            scatter<3>(factors, 3, first, end, p.factors + 3 * view * p.count);
            scatter<3>(conics, 3, first, end, p.conics + 3 * view * p.count);
            scatter<1>(depths, 1, first, end, p.depths + view * p.count);
            if (p.antialiased) {
                const Float compensations[1] = {or_zero(visible, compensation)};
                scatter<1>(compensations, 1, first, end, p.compensations + view * p.count);
            }
            float lanes[2][kWidth];
            store(lanes[0], radii[0]);
            store(lanes[1], radii[1]);
            int32_t* out = p.radii + 2 * (view * p.count + first);
            for (int l = 0; l < kWidth && first + l < end; ++l) {
                out[2 * l] = int32_t(lanes[0][l]);
                out[2 * l + 1] = int32_t(lanes[1][l]);
            }
        }
    }
}

void project_backward(const Projection& p, const ProjectionGradient& g, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kWidth) {
        const Shape shape = read_shape(p, first, end);
        const Vec3 mean = gather3(p.means, first, end);
        const Vec3 zero = {0.0f, 0.0f, 0.0f};
        Vec3 d_mean = zero, d_scale = zero;
        const Mask ortho = Float(p.ortho ? 1.0f : 0.0f) > Float(0.0f);
        Mask seen = Float(1.0f) < Float(0.0f);  // visible in some view; all others get zeros, finite or not
        Rotation d_rotation = {zero, zero, zero};
        for (int64_t view = 0; view < p.views; ++view) {
            const Camera camera = read_camera(p, view);
            const Splat s = splat(camera, shape, mean, p.eps2d);
            Float d_means2d[2], d_factors[3], d_depth[1], depth[1];
            gather<2>(g.d_means2d + 2 * view * p.count, 2, first, end, d_means2d);
            gather<3>(g.d_factors + 3 * view * p.count, 3, first, end, d_factors);
            gather<1>(g.d_depths + view * p.count, 1, first, end, d_depth);
            gather<1>(p.depths + view * p.count, 1, first, end, depth);
            const Mask visible = depth[0] > Float(0.0f);  // culled splats carry zeros
            if (!any(visible)) continue;
            seen = seen | visible;

            // factors = (sqrt(c / det), -b / sqrt(c det), 1 / sqrt(c))
            const Float r = Float(1.0f) / sqrt(s.c), t = Float(1.0f) / sqrt(s.det), half(0.5f);
            const Float d_t = d_factors[0] * s.c * r - d_factors[1] * s.b * r;
            const Float d_r = d_factors[2] - d_factors[1] * s.b * t;
            const Float d_b = -d_factors[1] * t * r;
            const Float d_c = half * (d_factors[0] * t * r - d_r * r * r * r);
            Float d_det = -half * d_t * t * t * t;

            // compensation = |m0 x m1| / sqrt(det); at |m0 x m1| = 0, where it has no derivative, zero is taken.
            Vec3 d_normal = zero;
            if (p.antialiased) {
                Float d_compensation[1];
                gather<1>(g.d_compensations + view * p.count, 1, first, end, d_compensation);
                const Float area = sqrt(s.bare_det);
                d_normal = (d_compensation[0] * t / max(area, Float(1e-18f))) * s.normal;
                d_det = fnma(half * d_compensation[0] * area, t * t * t, d_det);
            }

            // det = |m0 x m1|^2 + eps (|m0|^2 + |m1|^2) + eps^2, b = m0 . m1, c = |m1|^2 + eps
            const Float two(2.0f), blur = two * Float(p.eps2d) * d_det;
            d_normal = d_normal + (two * d_det) * s.normal;
            const Vec3 d_m0 = cross(s.m1, d_normal) + blur * s.m0 + d_b * s.m1;
            const Vec3 d_m1 = cross(d_normal, s.m0) + (blur + two * d_c) * s.m1 + d_b * s.m0;
            const Vec3 d_n0 = scaled(d_m0, shape.scale), d_n1 = scaled(d_m1, shape.scale);
            const Vec3 d_s = scaled(d_m0, s.n0) + scaled(d_m1, s.n1);
            const Vec3 d_jw0 = times(shape.rotation, d_n0), d_jw1 = times(shape.rotation, d_n1);

            // jw0 = fx/z (row0 - ratio_x row2), likewise jw1; mean2d = f x/z + c
            const Rotation& w = camera.rotation;
            const Float z = s.inverse_z;
            const Float d_ratio_x = -camera.fx * z * dot(d_jw0, w.row2);
            const Float d_ratio_y = -camera.fy * z * dot(d_jw1, w.row2);
            const Float x_ratio = s.position.x * z, y_ratio = s.position.y * z;
            const Mask free_x = (x_ratio >= camera.x_low) & (x_ratio <= camera.x_high);
            const Mask free_y = (y_ratio >= camera.y_low) & (y_ratio <= camera.y_high);
            const Float d_x_ratio = fma(camera.fx, d_means2d[0], or_zero(free_x, d_ratio_x));
            const Float d_y_ratio = fma(camera.fy, d_means2d[1], or_zero(free_y, d_ratio_y));
            const Float d_inverse_z = camera.fx * (dot(d_jw0, w.row0) - s.ratio_x * dot(d_jw0, w.row2)) +
                                      camera.fy * (dot(d_jw1, w.row1) - s.ratio_y * dot(d_jw1, w.row2)) +
                                      s.position.x * d_x_ratio + s.position.y * d_y_ratio;
            // Selected by lanes, not by a branch, after which the compiler would round the pinhole's sums in another
            // way.
            const Vec3 d_position = {select(ortho, camera.fx * d_means2d[0], d_x_ratio * z),
                                     select(ortho, camera.fy * d_means2d[1], d_y_ratio * z),
                                     select(ortho, d_depth[0], d_depth[0] - d_inverse_z * z * z)};

            d_mean = d_mean + or_zero(visible, row_times(d_position, w));
            d_scale = d_scale + or_zero(visible, d_s);
            d_rotation.row0 = d_rotation.row0 + or_zero(visible, s.jw0.x * d_n0 + s.jw1.x * d_n1);
            d_rotation.row1 = d_rotation.row1 + or_zero(visible, s.jw0.y * d_n0 + s.jw1.y * d_n1);
            d_rotation.row2 = d_rotation.row2 + or_zero(visible, s.jw0.z * d_n0 + s.jw1.z * d_n1);
        }

        // Through the rotation matrix to the unit quaternion, then through the normalization.
        const Rotation& d = d_rotation;
        const Float two(2.0f), w = shape.w, x = shape.x, y = shape.y, z = shape.z;
        const Float d_w = two * (x * (d.row2.y - d.row1.z) + y * (d.row0.z - d.row2.x) + z * (d.row1.x - d.row0.y));
        const Float d_x = two * (y * (d.row0.y + d.row1.x) + z * (d.row0.z + d.row2.x) + w * (d.row2.y - d.row1.z) -
                                 two * x * (d.row1.y + d.row2.z));
        const Float d_y = two * (x * (d.row0.y + d.row1.x) + z * (d.row1.z + d.row2.y) + w * (d.row0.z - d.row2.x) -
                                 two * y * (d.row0.x + d.row2.z));
        const Float d_z = two * (x * (d.row0.z + d.row2.x) + y * (d.row1.z + d.row2.y) + w * (d.row1.x - d.row0.y) -
                                 two * z * (d.row0.x + d.row1.y));
        const Float along = w * d_w + x * d_x + y * d_y + z * d_z;
        const Float quats[4] = {or_zero(seen, (d_w - along * w) * shape.inverse_norm),
                                or_zero(seen, (d_x - along * x) * shape.inverse_norm),
                                or_zero(seen, (d_y - along * y) * shape.inverse_norm),
                                or_zero(seen, (d_z - along * z) * shape.inverse_norm)};
        scatter3(d_mean, first, end, g.d_means);
        scatter<4>(quats, 4, first, end, g.d_quats);
        scatter3(d_scale, first, end, g.d_scales);
    }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
