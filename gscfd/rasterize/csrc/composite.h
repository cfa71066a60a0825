// Alpha compositing of each tile's splats, front to back, and its derivative.
#pragma once

#include "dispatch.h"
#include "splat.h"

namespace gscfd {

// Inputs of the records.
struct Records {
    int64_t views, count;
    int channels, color_channels;             // with and without the depth channel
    bool colors_per_view;                     // colors [V, N, D] instead of [N, D]
    bool opacities_per_view;                  // log_opacities [V, N] instead of [N]
    const int32_t* radii;                     // [V, N, 2]: culled splats are skipped
    const float *means2d, *factors, *depths;  // [V, N, 2 | 3 | 1]
    const float *log_opacities, *colors;
    float* records;  // [V * N, record_stride(channels)]
};

struct Composite {
    Grid grid;
    int64_t views;
    int channels;             // including the depth channel, if any, which is the last
    bool expected;            // divide the last channel by alpha
    float max_alpha;          // largest alpha of a splat
    const float* records;     // [V * N, record_stride(channels)]
    const int32_t* offsets;   // [V * tiles + 1]
    const Entry* entries;     // of all tiles
    float* colors;            // [V, H, W, channels]
    float *alphas, *medians;  // [V, H, W]
    // [V * tiles, tile * tile]: final transmittance, and index of the last entry composited (-1: none).
    float *transmittance, *last;
};

struct CompositeGradient {
    const float *d_colors, *d_alphas;  // as in Composite
    bool absolute;                     // also sum absolute values (absgrad)
    float* sums;                       // [pairs, sums_stride(channels)] at the slots
    uint8_t* used;                     // [pairs]: whether sums were written; the caller sets zeros
};

// Reduction of a splat's per-tile sums to its gradients.
struct Reduction {
    int64_t views, count;
    int channels, color_channels;  // with and without the depth channel
    bool colors_per_view, opacities_per_view, absolute;
    const float *factors, *opacities;  // [V, N, 3], [N] or [V, N]
    const int32_t* tiles_per_splat;    // [V, N]
    const int64_t* first_slot;         // [V * N + 1]
    const float* sums;
    const uint8_t* used;
    float *d_means2d, *d_factors, *d_depths;  // [V, N, 2 | 3 | 1]
    float* d_opacities;                       // as opacities
    float* d_colors;                          // [N, D] or [V, N, D]
    float* absolute_means2d;                  // [V, N, 2], null unless absolute
};

}  // namespace gscfd

// The tiles [begin, end) of all views.
GSCFD_DECLARE(void, composite, (const Composite&, int64_t begin, int64_t end))
GSCFD_DECLARE(void, composite_backward, (const Composite&, const CompositeGradient&, int64_t begin, int64_t end))
// The Gaussians [begin, end) in all views.
GSCFD_DECLARE(void, reduce_sums, (const Reduction&, int64_t begin, int64_t end))
