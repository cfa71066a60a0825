// Lists of the splats of each tile, nearest first.
#pragma once

#include <cstdint>
#include <vector>

#include "splat.h"

namespace gscfd {

struct Tiles {
    int64_t views, count;
    Grid grid;
    bool opacities_per_view;                  // log_opacities [V, N] instead of [N]
    const float* log_opacities;               // to base 2
    const int32_t* radii;                     // [V, N, 2]
    const float *means2d, *factors, *depths;  // [V, N, 2 | 3 | 1]
    int32_t* tiles_per_splat;                 // [V * N], set by begin_tiling
    int64_t* first_slot;                      // [V * N + 1], set by begin_tiling: running sum of tiles_per_splat
};

// Tiles that a splat touches in one row: columns [begin, end).
struct Span {
    int32_t slot;  // number of the splat's tiles in earlier spans
    uint16_t row, begin, end;
};

// Result of the first half of tiling, which tells the caller how long the lists are.
struct Tiling {
    Tiles input;
    std::vector<std::vector<Span>> spans;  // per chunk of flat ids
    std::vector<int64_t> first_span;       // [V * N], index within the chunk
    std::vector<int32_t> order;            // [V, N]: Gaussians of each view, visible ones first, by depth
    std::vector<int64_t> visible;          // [V]
};

Tiling* begin_tiling(const Tiles& input, int threads);

// Fills offsets [V * tiles + 1] and, with P the last element of first_slot, entries [P] and keys [P]: entries
// offsets[t] to offsets[t + 1] are the splats of tile t, sorted by depth and, at equal depth, by index. A key has, from
// the highest bit, view, tile of the view and the 32 bits of the depth (gsplat's isect_ids); the tile has as many bits
// as the number of tiles.
void finish_tiling(const Tiling& tiling, int threads, int32_t* offsets, Entry* entries, int64_t* keys);

}  // namespace gscfd
