// The C interface of the CPU rasteriser. Every array is dense, row-major, float unless said otherwise; shapes stand in
// project.h, tiles.h and composite.h. Nothing here throws: the callers in cpu.py have checked shapes and types.
#include <algorithm>
#include <cmath>

#include "composite.h"
#include "dispatch.h"
#include "parallel.h"
#include "project.h"
#include "tiles.h"

using namespace gscfd;

namespace {

constexpr int64_t kGaussiansPerTask = 256;

Grid make_grid(int width, int height, int tile) {
    return {width, height, tile, (width + tile - 1) / tile, (height + tile - 1) / tile};
}

}  // namespace

GSCFD_EXPORT void gscfd_project(int threads, const Projection* p) {
    parallel_for(threads, p->count, kGaussiansPerTask,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(project, *p, begin, end); });
}

// Returns a handle for gscfd_tiles_finish, which frees it. The input arrays must live until then.
GSCFD_EXPORT void* gscfd_tiles_begin(int threads, int64_t views, int64_t count, int width, int height, int tile,
                                     const float* opacities, const int32_t* radii, const float* means2d,
                                     const float* factors, const float* depths, int32_t* tiles_per_splat,
                                     int64_t* pairs) {
    const TileInput input{views, count, make_grid(width, height, tile), opacities, radii, means2d, factors, depths};
    Tiling* tiling = begin_tiling(input, threads);
    std::copy(tiling->tiles_per_splat.begin(), tiling->tiles_per_splat.end(), tiles_per_splat);
    *pairs = tiling->first_slot.back();
    return tiling;
}

GSCFD_EXPORT void gscfd_tiles_finish(int threads, void* handle, int32_t* offsets, int32_t* flatten_ids,
                                     int32_t* slots) {
    Tiling* tiling = static_cast<Tiling*>(handle);
    finish_tiling(*tiling, threads, offsets, flatten_ids, slots);
    delete tiling;
}

// colours [N, D] (colours_per_view = 0) or [V, N, D]; depth_channel appends the depth as the last channel.
GSCFD_EXPORT int gscfd_record_stride(int channels) { return record_stride(channels); }

GSCFD_EXPORT void gscfd_records(int threads, int64_t views, int64_t count, int colour_channels, int colours_per_view,
                                int depth_channel, const int32_t* radii, const float* means2d, const float* factors,
                                const float* depths, const float* opacities, const float* colours, float* records) {
    const int stride = record_stride(colour_channels + depth_channel);
    parallel_for(threads, views * count, kGaussiansPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t id = begin; id < end; ++id) {
            if (radii[2 * id] <= 0) continue;
            float* r = records + id * stride;
            r[kMeanX] = means2d[2 * id];
            r[kMeanY] = means2d[2 * id + 1];
            for (int k = 0; k < 3; ++k) r[kFactor + k] = kFactorScale * factors[3 * id + k];
            r[kLogOpacity] = std::log2(opacities[id % count]);
            r[kDepth] = depths[id];
            const float* colour = colours + (colours_per_view ? id : id % count) * colour_channels;
            for (int d = 0; d < colour_channels; ++d) r[kChannels + d] = colour[d];
            if (depth_channel) r[kChannels + colour_channels] = depths[id];
        }
    });
}

GSCFD_EXPORT void gscfd_composite(int threads, const Composite* c) {
    parallel_for(threads, c->views * c->grid.tiles_x * c->grid.tiles_y, 4,
                 [&](int64_t begin, int64_t end) { GSCFD_DISPATCH(composite, *c, begin, end); });
}
