// Definitions shared by the stages of the CPU rasterizer.
//
// V views, N Gaussians, W x H pixels. A "splat" is one Gaussian in one view; its flat id is view * N + Gaussian, as in
// gsplat's flatten_ids. Arrays are dense and row-major: [V, N, ...] or [V, H, W, ...].
#pragma once

#include <cstdint>

namespace gscfd {

// A splat is skipped at pixels where its alpha is below this (gsplat, 3DGS).
constexpr float kMinAlpha = 1.0f / 255.0f;
// A pixel is finished before its transmittance falls to this.
constexpr float kMinTransmittance = 1e-4f;

// A splat's exponent is -(U^2 + V^2) / 2 with U = f0 dx + f1 dy and V = f2 dy. f is the Cholesky factor of the conic,
// so a needle's exponent is no difference of large numbers. A record holds f scaled by kFactorScale, which gives u =
// kFactorScale U, v = kFactorScale V and alpha = 2^(log2 opacity - u^2 - v^2).
constexpr float kFactorScale = 0.849321800288019f;  // sqrt(log2(e) / 2)
constexpr float kLog2MinAlpha = -7.99435343685886f;

// Record of one splat, as the compositor reads it: mean x, y, factors 0-2 (scaled), log2 opacity, depth, 0, then the
// channels. Padded to whole cache lines.
constexpr int kMeanX = 0, kMeanY = 1, kFactor = 2, kLogOpacity = 5, kDepth = 6, kChannels = 8;
inline int record_stride(int channels) { return (kChannels + channels + 15) / 16 * 16; }

// Sums over one tile's pixels for one splat, from which its gradients follow. With q = dL / d ln(alpha):
// q, q u, q dy, q u dx, q u dy, q dy^2, |q u|, |q dv/dmy|, then w g per channel (from kSumChannels on).
constexpr int kSumChannels = 8;
inline int sums_stride(int channels) { return (kSumChannels + channels + 3) / 4 * 4; }

// Element of a tile's list. slot: index of the (splat, tile) pair in the order of flat ids.
struct Entry {
    int32_t id, slot;
};

struct Grid {
    int width, height, tile, tiles_x, tiles_y;
};

}  // namespace gscfd
