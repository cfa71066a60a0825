#include "harmonics.h"

#include "lanes.h"

namespace gscfd {
namespace GSCFD_ISA {
namespace {

constexpr int kWidth = Float::width;
constexpr int kMaxBases = 16;

constexpr float k0 = 0.28209479177387814f, k1 = 0.4886025119029199f;
constexpr float k2a = 1.0925484305920792f, k2b = 0.31539156525252005f, k2c = 0.5462742152960396f;
constexpr float k3a = 0.5900435899266435f, k3b = 2.890611442640554f, k3c = 0.4570457994644658f;
constexpr float k3d = 0.3731763325901154f, k3e = 1.445305721320277f;

GSCFD_INLINE void basis(int degree, Vec3 direction, Float* y_) {
    const Float x = direction.x, y = direction.y, z = direction.z;
    y_[0] = Float(k0);
    if (degree < 1) return;
    y_[1] = Float(-k1) * y;
    y_[2] = Float(k1) * z;
    y_[3] = Float(-k1) * x;
    if (degree < 2) return;
    const Float xx = x * x, yy = y * y, zz = z * z, one(1.0f), three(3.0f), five(5.0f);
    y_[4] = Float(k2a) * x * y;
    y_[5] = Float(-k2a) * y * z;
    y_[6] = Float(k2b) * (three * zz - one);
    y_[7] = Float(-k2a) * x * z;
    y_[8] = Float(k2c) * (xx - yy);
    if (degree < 3) return;
    y_[9] = Float(-k3a) * y * (three * xx - yy);
    y_[10] = Float(k3b) * x * y * z;
    y_[11] = Float(-k3c) * y * (five * zz - one);
    y_[12] = Float(k3d) * z * (five * zz - three);
    y_[13] = Float(-k3c) * x * (five * zz - one);
    y_[14] = Float(k3e) * z * (xx - yy);
    y_[15] = Float(-k3a) * x * (xx - three * yy);
}

// Gradient of sum_k g[k] Y_k with respect to the direction.
GSCFD_INLINE Vec3 basis_gradient(int degree, Vec3 direction, const Float* g) {
    const Float x = direction.x, y = direction.y, z = direction.z;
    Vec3 d = {Float(-k1) * g[3], Float(-k1) * g[1], Float(k1) * g[2]};
    if (degree < 2) return d;
    const Float xx = x * x, yy = y * y, zz = z * z, xy = x * y;
    const Float one(1.0f), three(3.0f), five(5.0f), six(6.0f), ten(10.0f);
    d.x += Float(k2a) * (y * g[4] - z * g[7]) + Float(2.0f * k2c) * x * g[8];
    d.y += Float(k2a) * (x * g[4] - z * g[5]) - Float(2.0f * k2c) * y * g[8];
    d.z += Float(6.0f * k2b) * z * g[6] - Float(k2a) * (y * g[5] + x * g[7]);
    if (degree < 3) return d;
    const Float shell = five * zz - one, saddle = three * (xx - yy);
    d.x += Float(k3b) * y * z * g[10] - Float(k3c) * shell * g[13] + Float(2.0f * k3e) * x * z * g[14] -
           Float(k3a) * (six * xy * g[9] + saddle * g[15]);
    d.y += Float(k3b) * x * z * g[10] - Float(k3c) * shell * g[11] - Float(2.0f * k3e) * y * z * g[14] -
           Float(k3a) * (saddle * g[9] - six * xy * g[15]);
    d.z += Float(k3b) * xy * g[10] - Float(k3c) * ten * z * (y * g[11] + x * g[13]) +
           Float(k3d) * (Float(15.0f) * zz - three) * g[12] + Float(k3e) * (xx - yy) * g[14];
    return d;
}

GSCFD_INLINE Vec3 unit(Vec3 a, Float* inverse_norm) {
    *inverse_norm = Float(1.0f) / max(sqrt(dot(a, a)), Float(1e-12f));
    return *inverse_norm * a;
}

GSCFD_INLINE void read_coefficients(const Harmonics& h, int64_t view, int64_t first, int64_t end, Vec3* out) {
    const float* values = h.coefficients + (h.per_view ? view * h.count * h.bases * 3 : 0);
    for (int k = 0; k < (h.degree + 1) * (h.degree + 1); ++k) {
        Float rgb[3];
        gather<3>(values + 3 * k, 3 * h.bases, first, end, rgb);
        out[k] = {rgb[0], rgb[1], rgb[2]};
    }
}

GSCFD_INLINE Vec3 evaluate(int used, const Float* y, const Vec3* coefficients) {
    Vec3 color = {0.5f, 0.5f, 0.5f};
    for (int k = 0; k < used; ++k) color = color + y[k] * coefficients[k];
    return color;
}

}  // namespace

void harmonics(const Harmonics& h, int64_t begin, int64_t end) {
    const int used = (h.degree + 1) * (h.degree + 1);
    for (int64_t first = begin; first < end; first += kWidth) {
        const Vec3 mean = gather3(h.means, first, end);
        Vec3 coefficients[kMaxBases];
        for (int64_t view = 0; view < h.views; ++view) {
            if (view == 0 || h.per_view) read_coefficients(h, view, first, end, coefficients);
            const float* center = h.centers + 3 * view;
            Float y[kMaxBases], inverse_norm;
            basis(h.degree, unit(mean - Vec3{center[0], center[1], center[2]}, &inverse_norm), y);
            const Vec3 color = evaluate(used, y, coefficients);
            const Float zero(0.0f);
            scatter3({max(color.x, zero), max(color.y, zero), max(color.z, zero)}, first, end,
                     h.colors + 3 * view * h.count);
        }
    }
}

void harmonics_backward(const Harmonics& h, const HarmonicsGradient& g, int64_t begin, int64_t end) {
    const int used = (h.degree + 1) * (h.degree + 1);
    const Vec3 zero = {0.0f, 0.0f, 0.0f};
    for (int64_t first = begin; first < end; first += kWidth) {
        const Vec3 mean = gather3(h.means, first, end);
        Vec3 coefficients[kMaxBases], d_coefficients[kMaxBases], d_mean = zero;
        for (int k = 0; k < used; ++k) d_coefficients[k] = zero;
        for (int64_t view = 0; view < h.views; ++view) {
            if (view == 0 || h.per_view) read_coefficients(h, view, first, end, coefficients);
            const float* center = h.centers + 3 * view;
            Float y[kMaxBases], inverse_norm;
            const Vec3 direction = unit(mean - Vec3{center[0], center[1], center[2]}, &inverse_norm);
            basis(h.degree, direction, y);
            const Vec3 color = evaluate(used, y, coefficients);
            Vec3 d = gather3(g.d_colors + 3 * view * h.count, first, end);
            d = {or_zero(color.x >= zero.x, d.x), or_zero(color.y >= zero.y, d.y), or_zero(color.z >= zero.z, d.z)};
            Float by_basis[kMaxBases];
            for (int k = 0; k < used; ++k) {
                d_coefficients[k] = d_coefficients[k] + y[k] * d;
                by_basis[k] = dot(coefficients[k], d);
            }
            if (h.degree > 0) {
                const Vec3 along = basis_gradient(h.degree, direction, by_basis);
                d_mean = d_mean + inverse_norm * (along - dot(along, direction) * direction);
            }
            if (h.per_view || view + 1 == h.views) {
                float* out = g.d_coefficients + (h.per_view ? view * h.count * h.bases * 3 : 0);
                for (int k = 0; k < used; ++k) {
                    const Float rgb[3] = {d_coefficients[k].x, d_coefficients[k].y, d_coefficients[k].z};
                    scatter<3>(rgb, 3 * h.bases, first, end, out + 3 * k);
                    d_coefficients[k] = zero;
                }
            }
        }
        scatter3(d_mean, first, end, g.d_means);
    }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
