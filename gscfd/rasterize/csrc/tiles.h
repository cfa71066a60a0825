// Lists of splats per tile, nearest first.
#pragma once

#include <cstdint>
#include <vector>

#include "splat.h"

namespace gscfd {

struct Tiles {
    int64_t views, count;
    Grid grid;
    const float* log_opacities;                // [N], to base 2
    const int32_t* radii;                      // [V, N, 2]
    const float *means2d, *factors, *depths;   // [V, N, 2 | 3 | 1]
    int32_t* tiles_per_splat;                  // [V * N], written by begin_tiling, like
    int64_t* first_slot;                       // [V * N + 1]: running sum of tiles_per_splat
};

// One row of tiles that a splat touches: columns [begin, end).
struct Span {
    int32_t slot;  // number of (splat, tile) pairs before it, in the order of flat ids
    uint16_t row, begin, end;
};

// The first half of tiling: what is known before the lists can be allocated.
struct Tiling {
    Tiles input;
    std::vector<std::vector<Span>> spans;     // per chunk of flat ids
    std::vector<int64_t> first_span;          // [V * N] in its chunk
    std::vector<int32_t> order;               // [V, N]: Gaussians of each view, visible ones first, by depth
    std::vector<int64_t> visible;             // [V]
};

Tiling* begin_tiling(const Tiles& input, int threads);

// offsets [V * tiles + 1], entries [first_slot's last]: entries offsets[t] to offsets[t + 1] are the splats of tile t
// by depth, equal depths by index.
void finish_tiling(const Tiling& tiling, int threads, int32_t* offsets, Entry* entries);

}  // namespace gscfd
