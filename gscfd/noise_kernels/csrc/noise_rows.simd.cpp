#include "noise_rows.h"

#include <stdlib.h>

#include "noise_radial.h"

namespace gscfd {
namespace GSCFD_ISA {

using namespace noise;

namespace {

constexpr int kBlock = 64;  // samples prepared together
constexpr int kLanes = 16;  // cells drawn together

// Samples of one render row, stored as arrays so that the loops below vectorize.
struct Block {
    float xx[kBlock], xy[kBlock], yy[kBlock], bx[kBlock], by[kBlock];  // SlopeFit
    float x[kBlock], z[kBlock], inverse[kBlock];
    int32_t covered[kBlock];
    int32_t axis[kBlock], outward[kBlock];
    float slope_u[kBlock], slope_v[kBlock], low_u[kBlock], high_u[kBlock], low_v[kBlock], high_v[kBlock];
    double along[kBlock];
    int32_t column_u[kBlock], column_v[kBlock], first_u[kBlock], last_u[kBlock], first_v[kBlock], last_v[kBlock];
    float within_u[kBlock], within_v[kBlock];
};

// Start of an image row in an image with a margin.
int64_t row_start(const Geometry& g, int row, int64_t stride) { return (row + margin(g)) * stride + margin(g); }

void fit_slopes(const Geometry& g, const Camera& camera, const float* depth, const float* inverse, int64_t stride,
                int size, Block& b) {
    const SlopeFit none;
    for (int i = 0; i < size; ++i) {
        b.xx[i] = none.xx, b.xy[i] = none.xy, b.yy[i] = none.yy, b.bx[i] = none.bx, b.by[i] = none.by;
    }
    for (int dy = -g.normal_radius; dy <= g.normal_radius; ++dy) {
        for (int dx = -g.normal_radius; dx <= g.normal_radius; ++dx) {
            if (dx == 0 && dy == 0) continue;
            const float limit = neighbor_limit(camera.fx, camera.fy, dx, dy);
            const float* other = depth + dy * stride + dx;
            const float* other_inverse = inverse + dy * stride + dx;
            for (int i = 0; i < size; ++i) {
                SlopeFit fit{b.xx[i], b.xy[i], b.yy[i], b.bx[i], b.by[i]};
                add_neighbor(fit, b.z[i], b.inverse[i], other[i], other_inverse[i], float(dx), float(dy), limit);
                b.xx[i] = fit.xx, b.xy[i] = fit.xy, b.yy[i] = fit.yy, b.bx[i] = fit.bx, b.by[i] = fit.by;
            }
        }
    }
}

void fit_planes(const Geometry& g, const Camera& camera_in, float y, int first, int size, Block& b) {
    const Camera camera = camera_in;
    const float inverse_pitch = 1 / g.pitch;
    for (int i = 0; i < size; ++i) b.x[i] = float((first + i + 0.5 - camera.cx) * camera.inverse_fx);
    for (int i = 0; i < size; ++i) {
        const SlopeFit fit{b.xx[i], b.xy[i], b.yy[i], b.bx[i], b.by[i]};
        const Tangent t = tangent_plane(camera, b.x[i], y, b.z[i], b.inverse[i], fit);
        b.axis[i] = t.axis, b.outward[i] = t.outward, b.slope_u[i] = t.slope_u, b.slope_v[i] = t.slope_v;
        b.low_u[i] = t.low_u * inverse_pitch, b.high_u[i] = t.high_u * inverse_pitch;
        b.low_v[i] = t.low_v * inverse_pitch, b.high_v[i] = t.high_v * inverse_pitch;
    }
}

void place_samples(const Geometry& g, const Camera& camera, double y, int first, int size, Block& block) {
    const double inverse_pitch = 1 / double(g.pitch), inverse_layer = 1 / double(g.layer_depth);
    for (int i = 0; i < size; ++i) {
        const double x = (first + i + 0.5 - camera.cx) * camera.inverse_fx;
        const Place p = place(camera, x, y, block.z[i], block.axis[i], inverse_pitch, inverse_layer);
        block.along[i] = p.along, block.column_u[i] = p.column_u, block.column_v[i] = p.column_v;
        block.within_u[i] = p.within_u, block.within_v[i] = p.within_v;
        block.first_u[i] = first_column(p.within_u, block.low_u[i]);
        block.last_u[i] = last_column(p.within_u, block.high_u[i]);
        block.first_v[i] = first_column(p.within_v, block.low_v[i]);
        block.last_v[i] = last_column(p.within_v, block.high_v[i]);
        if (!block.covered[i] || !p.valid) block.last_u[i] = block.first_u[i] - 1;
    }
}

bool append(Candidates& candidates, const Candidate& candidate) {
    if (candidates.size == candidates.capacity) {
        const int64_t capacity = candidates.capacity ? 2 * candidates.capacity : 1024;
        void* items = realloc(candidates.items, capacity * sizeof(Candidate));
        if (!items) return false;
        candidates.items = static_cast<Candidate*>(items);
        candidates.capacity = capacity;
    }
    candidates.items[candidates.size++] = candidate;
    return true;
}

bool emit(const Geometry& g, const Camera& camera, float y, const Block& block, int i, uint32_t sample, uint32_t column,
          Candidates& candidates) {
    const double inverse_pitch = 1 / double(g.pitch), inverse_layer = 1 / double(g.layer_depth);
    Tangent tangent{};
    tangent.axis = block.axis[i], tangent.slope_u = block.slope_u[i], tangent.slope_v = block.slope_v[i];
    const Projection projection = project_plane(camera, block.x[i], y, tangent);
    for (int iu = block.first_u[i]; iu <= block.last_u[i]; ++iu) {
        for (int iv = block.first_v[i]; iv <= block.last_v[i]; ++iv) {
            const float du = (iu + 0.5f - block.within_u[i]) * g.pitch, dv = (iv + 0.5f - block.within_v[i]) * g.pitch;
            if (!projects_inside(projection, block.z[i], du, dv)) continue;
            const double along = block.along[i] - (block.slope_u[i] * du + block.slope_v[i] * dv);
            const uint64_t key =
                column_key(block.axis[i], block.outward[i], block.column_u[i] + iu, block.column_v[i] + iv);
            const uint64_t claim = claim_of(along, block.outward[i], inverse_pitch, sample);
            if (!append(candidates, {cell_key(key, along, inverse_layer), claim, column, 0})) return false;
        }
    }
    return true;
}

bool emit_radial(const Geometry& g, int cells, const Camera& camera, const RadialSample& radial, uint32_t sample,
                 uint32_t column, Candidates& candidates) {
    const double inverse_pitch = 1 / double(g.pitch), inverse_layer = 1 / double(g.layer_depth);
    const double size = sqrt(dot3(radial.point, radial.point));
    if (!(size > 1e-6 && size * inverse_layer < kMaxLayer / 2)) return true;
    for (int side = -1; side <= 1; side += 2) {
        // A hemisphere's square counts up to 30 degrees beyond the equator.
        if (side * radial.point[2] < -0.5 * size) continue;
        const ChartBox box = chart_box(camera, radial, side, cells);
        for (int iu = box.first_u; iu <= box.last_u; ++iu) {
            for (int iv = box.first_v; iv <= box.last_v; ++iv) {
                double direction[3];
                chart_direction(side, {(2 * iu + 1.0) / cells - 1, (2 * iv + 1.0) / cells - 1}, direction);
                const double distance = radial_hit(camera, radial, direction);
                if (!(distance > 0 && distance * inverse_layer < kMaxLayer)) continue;
                const uint64_t key = cell_key(column_key(3, side, iu, iv), distance, inverse_layer);
                const uint64_t claim = claim_of(-distance, 1, inverse_pitch, sample);
                if (!append(candidates, {key, claim, column, 0})) return false;
            }
        }
    }
    return true;
}

}  // namespace

void mask_row(const Geometry& g, int row, const float* depth, const float* opacity, MaskedDepth masked) {
    const int64_t source = int64_t(row) * g.render_width;
    const int64_t target = row_start(g, row, masked.stride);
    for (int x = 0; x < g.render_width; ++x) {
        const float z = depth[source + x];
        const bool covered = covers(g, z, opacity[source + x]);
        masked.depth[target + x] = covered ? z : 0.0f;
        masked.inverse[target + x] = covered ? 1 / z : 0.0f;
    }
}

void smooth_row(const Geometry& g, int row, int spacing, const float* inverse, float* out, int64_t stride) {
    const int64_t start = row_start(g, row, stride);
    const float reach = kReach * g.pitch;
    for (int first = 0; first < g.render_width; first += kBlock) {
        const int size = g.render_width - first < kBlock ? g.render_width - first : kBlock;
        const float* source = inverse + start + first;
        float* target = out + start + first;
        bool any = false;
        for (int i = 0; i < size; ++i) any |= source[i] > 0;
        if (any) {
            for (int i = 0; i < size; ++i) target[i] = smoothed(source + i, stride, spacing, reach);
        } else {
            for (int i = 0; i < size; ++i) target[i] = 0;
        }
    }
}

void invert_row(const Geometry& g, int row, MaskedDepth masked) {
    const int64_t start = row_start(g, row, masked.stride);
    for (int x = 0; x < g.render_width; ++x) {
        const float inverse = masked.inverse[start + x];
        masked.depth[start + x] = inverse > 0 ? 1 / inverse : 0.0f;
    }
}

bool enumerate_row(const Geometry& g, int radial, const Camera& camera, MaskedDepth masked, int latent_row,
                   Candidates& candidates, int32_t* covered) {
    static thread_local Block block;
    candidates.size = 0;
    for (int i = 0; i < g.latent_width; ++i) covered[i] = 0;
    const int last_row = first_render_index(latent_row + 1, g.render_height, g.latent_height);
    for (int row = first_render_index(latent_row, g.render_height, g.latent_height); row < last_row; ++row) {
        const double y = (row + 0.5 - camera.cy) * camera.inverse_fy;
        for (int first = 0; first < g.render_width; first += kBlock) {
            const int size = g.render_width - first < kBlock ? g.render_width - first : kBlock;
            const int64_t start = row_start(g, row, masked.stride) + first;
            bool any = false;
            for (int i = 0; i < size; ++i) {
                const float z = masked.depth[start + i];
                block.covered[i] = z > 0;
                block.z[i] = z > 0 ? z : 1;
                block.inverse[i] = z > 0 ? masked.inverse[start + i] : 1;
                any |= z > 0;
            }
            if (!any) continue;
            fit_slopes(g, camera, masked.depth + start, masked.inverse + start, masked.stride, size, block);
            fit_planes(g, camera, float(y), first, size, block);
            place_samples(g, camera, y, first, size, block);
            for (int i = 0; i < size; ++i) {
                if (!block.covered[i]) continue;
                const int column = latent_index(first + i, g.render_width, g.latent_width);
                ++covered[column];
                const uint32_t sample = uint32_t(row) * g.render_width + first + i;
                if (radial) {
                    const double x = (first + i + 0.5 - camera.cx) * camera.inverse_fx;
                    const RadialSample where =
                        radial_sample(camera, x, y, block.z[i], block.axis[i], block.slope_u[i], block.slope_v[i]);
                    if (!emit_radial(g, radial, camera, where, sample, column, candidates)) return false;
                    continue;
                }
                if (block.first_u[i] > block.last_u[i] || block.first_v[i] > block.last_v[i]) continue;
                if (!emit(g, camera, float(y), block, i, sample, column, candidates)) return false;
            }
        }
    }
    return true;
}

void add_cells(const Draws& draws, const uint64_t* cells, const uint32_t* columns, int64_t size, int channels,
               float* sums, int64_t channel_stride) {
    for (int64_t first = 0; first < size; first += kLanes) {
        const int lanes = size - first < kLanes ? int(size - first) : kLanes;
        uint32_t low[kLanes], high[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            const uint64_t cell = i < lanes ? cells[first + i] : 0;
            low[i] = uint32_t(cell), high[i] = uint32_t(cell >> 32);
        }
        for (int block = 0; 4 * block < channels; ++block) {
            float value[4][kLanes] = {};
            for (int node = 0; node < draws.nodes; ++node) {
                for (int i = 0; i < kLanes; ++i) {
                    float draw[4];
                    normals(draws.seed, draws.stream, uint64_t(high[i]) << 32 | low[i], draws.node[node], block, draw);
                    for (int c = 0; c < 4; ++c) value[c][i] += draws.weight[node] * draw[c];
                }
            }
            const int end = channels - 4 * block < 4 ? channels - 4 * block : 4;
            for (int c = 0; c < end; ++c) {
                float* row = sums + (4 * block + c) * channel_stride;
                for (int i = 0; i < lanes; ++i) row[columns[first + i]] += value[c][i];
            }
        }
    }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
