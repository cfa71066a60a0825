// Projection of 3D Gaussians to splats (EWA splatting, Zwicker et al. 2001; 3DGS, Kerbl et al. 2023).
#pragma once

#include "dispatch.h"
#include "splat.h"

namespace gscfd {

struct Projection {
    int64_t views, count;
    const float *means, *quats, *scales, *opacities;  // [N, 3], [N, 4], [N, 3], [N]
    const float *viewmats, *intrinsics;               // [V, 4, 4], [V, 3, 3]
    int width, height;
    float eps2d, near_plane, far_plane, radius_clip;
    bool ortho;                                  // orthographic instead of pinhole
    bool antialiased;                            // fill compensations, which then multiply the opacities
    int32_t* radii;                              // [V, N, 2], zero where the splat is culled
    float *means2d, *factors, *depths, *conics;  // [V, N, 2 | 3 | 1 | 3], zero where the splat is culled
    float* compensations;  // [V, N], sqrt(det before / det after adding eps2d); null unless antialiased
    float* log_opacities;  // [N], or [V, N] if antialiased: to base 2
};

struct ProjectionGradient {
    const float *d_means2d, *d_factors, *d_depths;  // as in Projection
    const float* d_compensations;                   // null unless antialiased
    float *d_means, *d_quats, *d_scales;            // [N, 3 | 4 | 3]
};

}  // namespace gscfd

// The Gaussians [begin, end) in all views.
GSCFD_DECLARE(void, project, (const Projection&, int64_t begin, int64_t end))
GSCFD_DECLARE(void, project_backward, (const Projection&, const ProjectionGradient&, int64_t begin, int64_t end))
