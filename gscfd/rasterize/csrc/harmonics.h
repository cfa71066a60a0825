// View-dependent color: max(0, 1/2 + real spherical harmonics of degree 0 to 3) in the direction from the camera to the
// Gaussian (Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013).
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace gscfd {

struct Harmonics {
    int64_t views, count;
    int degree, bases;  // bases: number in the arrays, of which the first (degree + 1)^2 are used
    bool per_view;      // coefficients [V, N, bases, 3] instead of [N, bases, 3]
    const float *means, *centers, *coefficients;  // [N, 3], [V, 3], see per_view
    float* colors;                                // [V, N, 3]
};

struct HarmonicsGradient {
    const float* d_colors;            // [V, N, 3]
    float *d_means, *d_coefficients;  // as in Harmonics
};

}  // namespace gscfd

// The Gaussians [begin, end) in all views.
GSCFD_DECLARE(void, harmonics, (const Harmonics&, int64_t begin, int64_t end))
GSCFD_DECLARE(void, harmonics_backward, (const Harmonics&, const HarmonicsGradient&, int64_t begin, int64_t end))
