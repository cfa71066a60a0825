#include "composite.h"

#include "simd.h"

namespace gscfd {
namespace GSCFD_ISA {
namespace {

constexpr int kWidth = Float::width;
constexpr int kMaxGroup = 4;  // channels that are composited at once

// The pixels of a tile as vectors, row-major. Lanes outside the image are computed and left out.
template <int kTile>
struct Pixels {
    static constexpr int kCount = kTile * kTile;
    static constexpr int kVectors = kCount / kWidth;
    static constexpr int kColumns = kWidth >= kTile ? 1 : kTile / kWidth;  // different patterns of x

    Float x[kColumns], y[kVectors];
    int left, top, width, height;  // of the part inside the image
    int64_t view, first;           // index of the tile's first pixel in [V, H, W]

    Pixels(const Grid& grid, int64_t tile) {
        const int64_t tiles = static_cast<int64_t>(grid.tiles_x) * grid.tiles_y;
        view = tile / tiles;
        left = static_cast<int>(tile % grid.tiles_x) * kTile;
        top = static_cast<int>(tile % tiles / grid.tiles_x) * kTile;
        width = grid.width - left < kTile ? grid.width - left : kTile;
        height = grid.height - top < kTile ? grid.height - top : kTile;
        first = (view * grid.height + top) * grid.width + left;
        float xs[kCount], ys[kCount];
        for (int i = 0; i < kCount; ++i) {
            xs[i] = left + i % kTile + 0.5f;
            ys[i] = top + i / kTile + 0.5f;
        }
        for (int k = 0; k < kColumns; ++k) x[k] = load(xs + k * kWidth);
        for (int k = 0; k < kVectors; ++k) y[k] = load(ys + k * kWidth);
    }

    // body(index in the tile, index in [V, H, W]) for the pixels inside the image.
    template <typename Body>
    GSCFD_INLINE void each(const Grid& grid, Body&& body) const {
        for (int row = 0; row < height; ++row)
            for (int column = 0; column < width; ++column)
                body(row * kTile + column, first + static_cast<int64_t>(row) * grid.width + column);
    }
};

template <int kTile, int kGroup>
void composite_tile(const Composite& c, int64_t tile, int channel) {
    using P = Pixels<kTile>;
    const P pixels(c.grid, tile);
    const int stride = record_stride(c.channels);
    const int32_t begin = c.offsets[tile], end = c.offsets[tile + 1];

    Float transmittance[P::kVectors], median[P::kVectors], last[P::kVectors], colour[P::kVectors][kGroup];
    Mask alive[P::kVectors];
    for (int k = 0; k < P::kVectors; ++k) {
        transmittance[k] = Float(1.0f);
        median[k] = Float(0.0f);
        last[k] = Float(-1.0f);
        alive[k] = Float(0.0f) < Float(1.0f);
        for (int d = 0; d < kGroup; ++d) colour[k][d] = Float(0.0f);
    }

    for (int32_t i = begin; i < end; ++i) {
        const float* r = c.records + static_cast<int64_t>(c.ids[i]) * stride;
        if (i + 4 < end) __builtin_prefetch(c.records + static_cast<int64_t>(c.ids[i + 4]) * stride);
        const Float f0(r[kFactor]), f1(r[kFactor + 1]), f2(r[kFactor + 2]), log_opacity(r[kLogOpacity]);
        const Float index(static_cast<float>(i - begin)), depth(r[kDepth]), my(r[kMeanY]);
        Float u_of_x[P::kColumns];
        for (int k = 0; k < P::kColumns; ++k) u_of_x[k] = f0 * (pixels.x[k] - Float(r[kMeanX]));
        bool stopped = false;
        for (int k = 0; k < P::kVectors; ++k) {
            const Float dy = pixels.y[k] - my;
            const Float u = fma(f1, dy, u_of_x[k % P::kColumns]), v = f2 * dy;
            const Float exponent = fnma(u, u, fnma(v, v, log_opacity));
            Mask hit = alive[k] & (exponent >= Float(kLog2MinAlpha));
            if (!any(hit)) continue;
            const Float alpha = min(exp2(exponent), Float(kMaxAlpha));
            const Float weight = alpha * transmittance[k], next = transmittance[k] - weight;
            const Mask stop = hit & (next <= Float(kMinTransmittance));
            if (any(stop)) {
                hit = and_not(hit, stop);
                alive[k] = and_not(alive[k], stop);
                stopped = true;
            }
            const Float w = or_zero(hit, weight);
            for (int d = 0; d < kGroup; ++d) colour[k][d] = fma(w, Float(r[kChannels + channel + d]), colour[k][d]);
            median[k] = select(hit & (transmittance[k] >= Float(0.5f)), depth, median[k]);
            last[k] = select(hit, index, last[k]);
            transmittance[k] = select(hit, next, transmittance[k]);
        }
        if (stopped) {
            bool some = false;
            for (int k = 0; k < P::kVectors; ++k) some |= any(alive[k]);
            if (!some) break;
        }
    }

    float lanes[kGroup][P::kCount], medians[P::kCount];
    float* final_transmittance = c.transmittance + tile * P::kCount;
    for (int k = 0; k < P::kVectors; ++k) {
        store(final_transmittance + k * kWidth, transmittance[k]);
        store(c.last + tile * P::kCount + k * kWidth, last[k]);
        store(medians + k * kWidth, or_zero(transmittance[k] < Float(0.5f), median[k]));
        for (int d = 0; d < kGroup; ++d) store(lanes[d] + k * kWidth, colour[k][d]);
    }
    const bool divide = c.expected && channel + kGroup == c.channels;
    pixels.each(c.grid, [&](int i, int64_t pixel) {
        const float alpha = 1.0f - final_transmittance[i];
        if (divide) lanes[kGroup - 1][i] /= alpha > 1e-10f ? alpha : 1e-10f;
        for (int d = 0; d < kGroup; ++d) c.colours[pixel * c.channels + channel + d] = lanes[d][i];
        c.alphas[pixel] = alpha;
        c.medians[pixel] = medians[i];
    });
}

template <int kTile>
void composite_group(const Composite& c, int64_t tile, int channel) {
    const int left = c.channels - channel;
    if (left >= 4) return composite_tile<kTile, 4>(c, tile, channel);
    if (left == 3) return composite_tile<kTile, 3>(c, tile, channel);
    if (left == 2) return composite_tile<kTile, 2>(c, tile, channel);
    composite_tile<kTile, 1>(c, tile, channel);
}

}  // namespace

void composite(const Composite& c, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
        for (int channel = 0; channel < c.channels; channel += kMaxGroup) {
            if (c.grid.tile == 8) composite_group<8>(c, tile, channel);
            else composite_group<16>(c, tile, channel);
        }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
