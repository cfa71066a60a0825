// C interface of the CPU rasterizer. Arrays are dense, row-major and, unless noted, float; project.h, harmonics.h,
// tiles.h and composite.h give their shapes. Nothing here throws: the callers in cpu.py check shapes and types.
#include "composite.h"
#include "dispatch.h"
#include "harmonics.h"
#include "parallel.h"
#include "project.h"
#include "tiles.h"

using namespace gscfd;

namespace {

constexpr int64_t kGaussiansPerTask = 256;

void write_records(const Records& r, int64_t begin, int64_t end) {
    const int stride = record_stride(r.channels);
    for (int64_t id = begin; id < end; ++id) {
        if (r.radii[2 * id] <= 0) continue;
        float* out = r.records + id * stride;
        out[kMeanX] = r.means2d[2 * id];
        out[kMeanY] = r.means2d[2 * id + 1];
        for (int k = 0; k < 3; ++k) out[kFactor + k] = kFactorScale * r.factors[3 * id + k];
        out[kLogOpacity] = r.log_opacities[r.opacities_per_view ? id : id % r.count];
        out[kDepth] = r.depths[id];
        const float* color = r.colors + (r.colors_per_view ? id : id % r.count) * r.color_channels;
        for (int d = 0; d < r.color_channels; ++d) out[kChannels + d] = color[d];
        if (r.channels > r.color_channels) out[kChannels + r.color_channels] = r.depths[id];
    }
}

}  // namespace

GSCFD_EXPORT void gscfd_project(int threads, const Projection* p) {
    parallel_for(threads, p->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(project, *p, begin, end); });
}

GSCFD_EXPORT void gscfd_harmonics(int threads, const Harmonics* h) {
    parallel_for(threads, h->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(harmonics, *h, begin, end); });
}

GSCFD_EXPORT void gscfd_harmonics_backward(int threads, const Harmonics* h, const HarmonicsGradient* g) {
    parallel_for(threads, h->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(harmonics_backward, *h, *g, begin, end); });
}

GSCFD_EXPORT void gscfd_project_backward(int threads, const Projection* p, const ProjectionGradient* g) {
    parallel_for(threads, p->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(project_backward, *p, *g, begin, end); });
}

// Returns a handle that gscfd_tiles_finish frees. The arrays must live until then.
GSCFD_EXPORT void* gscfd_tiles_begin(int threads, const Tiles* tiles) { return begin_tiling(*tiles, threads); }

GSCFD_EXPORT void gscfd_tiles_finish(int threads, void* handle, int32_t* offsets, Entry* entries, int64_t* keys) {
    Tiling* tiling = static_cast<Tiling*>(handle);
    finish_tiling(*tiling, threads, offsets, entries, keys);
    delete tiling;
}

GSCFD_EXPORT int gscfd_record_stride(int channels) { return record_stride(channels); }

GSCFD_EXPORT int gscfd_sums_stride(int channels) { return sums_stride(channels); }

GSCFD_EXPORT void gscfd_records(int threads, const Records* r) {
    parallel_for(threads, r->views * r->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { write_records(*r, begin, end); });
}

GSCFD_EXPORT void gscfd_composite(int threads, const Composite* c) {
    parallel_for(threads, c->views * c->grid.tiles_x * c->grid.tiles_y, 4,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(composite, *c, begin, end); });
}

GSCFD_EXPORT void gscfd_composite_backward(int threads, const Composite* c, const CompositeGradient* g) {
    parallel_for(threads, c->views * c->grid.tiles_x * c->grid.tiles_y, 4,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(composite_backward, *c, *g, begin, end); });
}

GSCFD_EXPORT void gscfd_reduce(int threads, const Reduction* r) {
    parallel_for(threads, r->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(reduce_sums, *r, begin, end); });
}
