// Alpha compositing of the splats of each tile, front to back, and its derivative.
#pragma once

#include "dispatch.h"
#include "splat.h"

namespace gscfd {

struct Composite {
    Grid grid;
    int64_t views;
    int channels;            // with the depth channel, if any, as the last
    bool expected;           // divide the last channel by alpha
    const float* records;    // [V * N, record_stride(channels)]
    const int32_t* offsets;  // [V * tiles + 1]
    const int32_t* ids;      // flatten_ids
    float* colours;          // [V, H, W, channels]
    float *alphas, *medians;  // [V, H, W]
    float *transmittance, *last;  // [V * tiles, tile * tile]: at the end, and which entry of the list came last (-1: none)
};

struct CompositeGradient {
    const float *d_colours, *d_alphas;  // as in Composite
    const int32_t* slots;
    bool absolute;
    float* sums;  // [pairs, sums_stride(channels)] at the slots
};

}  // namespace gscfd

// The tiles [begin, end) of all views.
GSCFD_DECLARE(void, composite, (const Composite&, int64_t begin, int64_t end))
GSCFD_DECLARE(void, composite_backward, (const Composite&, const CompositeGradient&, int64_t begin, int64_t end))
