// Reference map of radial noise: directions from the origin on two equal-area squares, one for each hemisphere. A cell
// is a square of that map and a layer of distances from the origin. docs/noise.md states the algorithm.
#pragma once

#include "noise_core.h"

namespace gscfd {
namespace noise {

constexpr double kQuarterPi = 0.78539816339744831;

// A point of a hemisphere's square; the hemisphere itself is [-1, 1]^2.
struct ChartPoint {
    double u, v;
};

// Maps a direction (x, y, z) of unit length to the square of the hemisphere side * z >= 0: Lambert's azimuthal
// equal-area projection to a disc, then the concentric map from disc to square (Shirley and Chiu 1997). The map extends
// beyond the equator.
GSCFD_HD ChartPoint chart_point(int side, double x, double y, double z) {
    const double cap = 1 - side * z, radius = sqrt(cap > 0 ? cap : 0);
    const bool wide = fabs(x) >= fabs(y);
    const double major = wide ? x : y, minor = wide ? y : x;
    const double along = major < 0 ? -radius : radius;
    const double across = major != 0 ? along * atan(minor / major) / kQuarterPi : 0;
    return wide ? ChartPoint{along, across} : ChartPoint{across, along};
}

// Inverse of chart_point, for points in [-1, 1]^2.
GSCFD_HD void chart_direction(int side, ChartPoint point, double direction[3]) {
    const bool wide = fabs(point.u) >= fabs(point.v);
    const double along = wide ? point.u : point.v, across = wide ? point.v : point.u;
    const double angle = along != 0 ? kQuarterPi * across / along : 0;
    const double radius = along * sqrt(2 - along * along);
    const double major = radius * cos(angle), minor = radius * sin(angle);
    direction[0] = wide ? major : minor;
    direction[1] = wide ? minor : major;
    direction[2] = side * (1 - along * along);
}

// A render sample's tangent plane {Y : normal . Y = offset} and the values needed to project onto the sample.
struct RadialSample {
    double normal[3], offset, facing;  // facing: normal . ray
    double point[3], ray[3];           // world axes
    double x, y, z;                    // the ray in the camera frame is (x, y, 1); z: depth
};

GSCFD_HD double dot3(const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// The ray (x, y, 1) of the camera frame in world axes.
GSCFD_HD void world_ray(const Camera& camera, double x, double y, double ray[3]) {
    const float* r = camera.rotation;
    for (int i = 0; i < 3; ++i) ray[i] = r[i] * x + r[3 + i] * y + r[6 + i];
}

GSCFD_HD RadialSample radial_sample(const Camera& camera, double x, double y, double z, int axis, double slope_u,
                                    double slope_v) {
    RadialSample s{};
    s.x = x, s.y = y, s.z = z;
    s.normal[axis] = 1;
    s.normal[axis == 2 ? 0 : axis + 1] = slope_u;
    s.normal[axis == 0 ? 2 : axis - 1] = slope_v;
    world_ray(camera, x, y, s.ray);
    for (int i = 0; i < 3; ++i) s.point[i] = camera.origin[i] + z * s.ray[i];
    s.offset = dot3(s.normal, s.point);
    s.facing = dot3(s.normal, s.ray);
    return s;
}

GSCFD_HD ChartPoint chart_of_point(int side, const double* p) {
    const double size = sqrt(dot3(p, p));
    return chart_point(side, p[0] / size, p[1] / size, p[2] / size);
}

// Range of the cells of one hemisphere that may fall into a sample, both ends included.
struct ChartBox {
    int first_u, last_u, first_v, last_v;
};

// The range that contains the points where the corner rays meet the plane. cells: number along each side of the square.
GSCFD_HD ChartBox chart_box(const Camera& camera, const RadialSample& s, int side, int cells) {
    const ChartPoint center = chart_of_point(side, s.point);
    double low_u = center.u, high_u = center.u, low_v = center.v, high_v = center.v;
    for (int corner = 0; corner < 4; ++corner) {
        double ray[3], point[3];
        world_ray(camera, s.x + (corner & 1 ? 0.5 : -0.5) * camera.inverse_fx,
                  s.y + (corner & 2 ? 0.5 : -0.5) * camera.inverse_fy, ray);
        const double nearer = dot3(s.normal, ray) / s.facing;
        const double depth = s.z / (nearer > 0.1 ? nearer : 0.1);
        for (int i = 0; i < 3; ++i) point[i] = camera.origin[i] + depth * ray[i];
        const ChartPoint c = chart_of_point(side, point);
        low_u = c.u < low_u ? c.u : low_u, high_u = c.u > high_u ? c.u : high_u;
        low_v = c.v < low_v ? c.v : low_v, high_v = c.v > high_v ? c.v : high_v;
    }
    // The map bends straight edges, most of all on its diagonals, hence a margin of half the extent plus half a cell.
    const double half = 0.5 * cells;
    const double margin = 0.5 * half * (high_u - low_u > high_v - low_v ? high_u - low_u : high_v - low_v);
    const int base_u = int(floor((center.u + 1) * half)), base_v = int(floor((center.v + 1) * half));
    const double from_u = ceil((low_u + 1) * half - margin - 1), to_u = floor((high_u + 1) * half + margin);
    const double from_v = ceil((low_v + 1) * half - margin - 1), to_v = floor((high_v + 1) * half + margin);
    const int least_u = base_u > kHalfBox ? base_u - kHalfBox : 0, least_v = base_v > kHalfBox ? base_v - kHalfBox : 0;
    const int most_u = base_u + kHalfBox < cells ? base_u + kHalfBox - 1 : cells - 1;
    const int most_v = base_v + kHalfBox < cells ? base_v + kHalfBox - 1 : cells - 1;
    return {from_u > least_u ? int(from_u) : least_u, to_u < most_u ? int(to_u) : most_u,
            from_v > least_v ? int(from_v) : least_v, to_v < most_v ? int(to_v) : most_v};
}

// Distance from the origin at which a cell's ray meets the plane inside the sample, or 0 if it does not.
GSCFD_HD double radial_hit(const Camera& camera, const RadialSample& s, const double* direction) {
    const double distance = s.offset / dot3(s.normal, direction);
    if (!(distance > 0 && distance < 1e30)) return 0;
    double p[3], c[3];
    for (int i = 0; i < 3; ++i) p[i] = distance * direction[i] - camera.origin[i];
    for (int i = 0; i < 3; ++i) {
        const float* r = camera.rotation + 3 * i;
        c[i] = r[0] * p[0] + r[1] * p[1] + r[2] * p[2];
    }
    const double x = 2 * camera.fx * (c[0] - s.x * c[2]), y = 2 * camera.fy * (c[1] - s.y * c[2]);
    return c[2] > 0 && -c[2] <= x && x < c[2] && -c[2] <= y && y < c[2] ? distance : 0;
}

}  // namespace noise
}  // namespace gscfd
