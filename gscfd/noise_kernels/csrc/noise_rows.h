// Inner loops of the CPU noise. noise_rows.simd.cpp is compiled once per instruction set; noise_cpu.cpp drives it.
#pragma once

#include "dispatch.h"
#include "noise_core.h"

namespace gscfd {
namespace noise {

// One view's depth, 0 where it is not covered, and its reciprocal, with a border of margin(geometry) zeros.
struct MaskedDepth {
    float *depth, *inverse;
    int64_t stride;  // samples per row, border included
};

// A render sample's claim on a cell for its latent pixel.
struct Candidate {
    uint64_t cell, claim;
    uint32_t column;  // of the latent pixel
    uint32_t slot;    // in the claim table
};

// The candidates of one latent row, in the order of the render samples.
struct Candidates {
    Candidate* items = nullptr;
    int64_t size = 0, capacity = 0;
};

// The Ornstein-Uhlenbeck bridge as a weighted sum of draws.
struct Draws {
    uint64_t seed;
    uint32_t stream;
    int32_t nodes;
    const uint32_t* node;
    const float* weight;
};

}  // namespace noise
}  // namespace gscfd

// Fills one row of the masked depth. row: row of the image.
GSCFD_DECLARE(void, mask_row,
              (const gscfd::noise::Geometry&, int row, const float* depth, const float* opacity,
               gscfd::noise::MaskedDepth))

// Smooths one row of 1 / depth from `inverse` into `out`, images laid out like those of MaskedDepth.
GSCFD_DECLARE(void, smooth_row,
              (const gscfd::noise::Geometry&, int row, int spacing, const float* inverse, float* out, int64_t stride))

// Fills one row of masked.depth from masked.inverse.
GSCFD_DECLARE(void, invert_row, (const gscfd::noise::Geometry&, int row, gscfd::noise::MaskedDepth))

// Replaces the candidates by those of a latent row; covered [latent_width] receives the number of covered samples.
// radial: 0 for cells in columns along the axes, otherwise the number of cells along each side of the radial map.
// Returns false if out of memory.
GSCFD_DECLARE(bool, enumerate_row,
              (const gscfd::noise::Geometry&, int radial, const gscfd::noise::Camera&, gscfd::noise::MaskedDepth,
               int latent_row, gscfd::noise::Candidates&, int32_t* covered))

// Adds the values of `size` cells, in order, to sums[channel * channel_stride + column].
GSCFD_DECLARE(void, add_cells,
              (const gscfd::noise::Draws&, const uint64_t* cells, const uint32_t* columns, int64_t size, int channels,
               float* sums, int64_t channel_stride))
