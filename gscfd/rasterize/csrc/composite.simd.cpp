#include "composite.h"

#include "simd.h"

namespace gscfd {
namespace GSCFD_ISA {
namespace {

constexpr int kWidth = Float::width;
constexpr int kMaxGroup = 6;  // channels composited together: color, two moments of depth, depth

// The pixels of a tile as vectors, row-major. Lanes outside the image are computed and discarded.
template <int kTile>
struct Pixels {
    static constexpr int kCount = kTile * kTile;
    static constexpr int kVectors = kCount / kWidth;
    static constexpr int kColumns = kWidth >= kTile ? 1 : kTile / kWidth;  // distinct vectors of x

    Float x[kColumns], y[kVectors];
    int left, top, width, height;  // of the part inside the image
    int64_t view, first;           // index of the tile's first pixel in [V, H, W]

    Pixels(const Grid& grid, int64_t tile) {
        const int64_t tiles = int64_t(grid.tiles_x) * grid.tiles_y;
        view = tile / tiles;
        left = int(tile % grid.tiles_x) * kTile;
        top = int(tile % tiles / grid.tiles_x) * kTile;
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

    // Calls body(index in the tile, index in [V, H, W]) for each pixel inside the image.
    template <typename Body>
    GSCFD_INLINE void each(const Grid& grid, Body&& body) const {
        for (int row = 0; row < height; ++row)
            for (int column = 0; column < width; ++column)
                body(row * kTile + column, first + int64_t(row) * grid.width + column);
    }
};

template <int kTile, int kGroup>
void composite_tile(const Composite& c, int64_t tile, int channel) {
    using P = Pixels<kTile>;
    const P pixels(c.grid, tile);
    const int stride = record_stride(c.channels);
    const int32_t begin = c.offsets[tile], end = c.offsets[tile + 1];

    // Alpha is summed directly: 1 - transmittance loses precision at a faint pixel, and the depth is divided by alpha.
    Float transmittance[P::kVectors], alphas[P::kVectors], median[P::kVectors], last[P::kVectors];
    Float color[P::kVectors][kGroup];
    Mask alive[P::kVectors];
    for (int k = 0; k < P::kVectors; ++k) {
        transmittance[k] = Float(1.0f);
        alphas[k] = median[k] = Float(0.0f);
        last[k] = Float(-1.0f);
        alive[k] = Float(0.0f) < Float(1.0f);
        for (int d = 0; d < kGroup; ++d) color[k][d] = Float(0.0f);
    }

    for (int32_t i = begin; i < end; ++i) {
        const float* r = c.records + int64_t(c.entries[i].id) * stride;
        if (i + 4 < end) __builtin_prefetch(c.records + int64_t(c.entries[i + 4].id) * stride);
        const Float f0(r[kFactor]), f1(r[kFactor + 1]), f2(r[kFactor + 2]), log_opacity(r[kLogOpacity]);
        const Float index(float(i - begin)), depth(r[kDepth]), my(r[kMeanY]);
        Float u_of_x[P::kColumns];
        for (int k = 0; k < P::kColumns; ++k) u_of_x[k] = f0 * (pixels.x[k] - Float(r[kMeanX]));
        bool stopped = false;
        for (int k = 0; k < P::kVectors; ++k) {
            const Float dy = pixels.y[k] - my;
            const Float u = fma(f1, dy, u_of_x[k % P::kColumns]), v = f2 * dy;
            const Float exponent = fnma(u, u, fnma(v, v, log_opacity));
            Mask hit = alive[k] & (exponent >= Float(kLog2MinAlpha));
            if (!any(hit)) continue;
            const Float alpha = min(exp2(exponent), Float(c.max_alpha));
            const Float weight = alpha * transmittance[k], next = transmittance[k] - weight;
            const Mask stop = hit & (next <= Float(kMinTransmittance));
            if (any(stop)) {
                hit = and_not(hit, stop);
                alive[k] = and_not(alive[k], stop);
                stopped = true;
            }
            const Float w = or_zero(hit, weight);
            alphas[k] += w;
            for (int d = 0; d < kGroup; ++d) color[k][d] = fma(w, Float(r[kChannels + channel + d]), color[k][d]);
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

    float lanes[kGroup][P::kCount], alpha_lanes[P::kCount], medians[P::kCount];
    for (int k = 0; k < P::kVectors; ++k) {
        store(c.transmittance + tile * P::kCount + k * kWidth, transmittance[k]);
        store(alpha_lanes + k * kWidth, alphas[k]);
        store(c.last + tile * P::kCount + k * kWidth, last[k]);
        store(medians + k * kWidth, or_zero(transmittance[k] < Float(0.5f), median[k]));
        for (int d = 0; d < kGroup; ++d) store(lanes[d] + k * kWidth, color[k][d]);
    }
    const bool divide = c.expected && channel + kGroup == c.channels;
    pixels.each(c.grid, [&](int i, int64_t pixel) {
        const float alpha = alpha_lanes[i];
        if (divide) lanes[kGroup - 1][i] /= alpha > 1e-10f ? alpha : 1e-10f;
        for (int d = 0; d < kGroup; ++d) c.colors[pixel * c.channels + channel + d] = lanes[d][i];
        c.alphas[pixel] = alpha;
        c.medians[pixel] = medians[i];
    });
}

// Runs back to front and undoes the forward pass: the transmittance T before a splat is the one behind it divided by
// 1 - alpha. This keeps full precision; a difference from the final color would not. If g is the loss's gradient with
// respect to a pixel's channels and a that with respect to its alpha, then the derivative with respect to a splat's
// alpha is T (c . g) - behind / (1 - alpha). Here behind is the sum of w (c . g) over the splats further back, minus
// a times the final T.
template <int kTile, int kGroup, bool kAbsolute>
void composite_tile_backward(const Composite& c, const CompositeGradient& g, int64_t tile, int channel) {
    using P = Pixels<kTile>;
    const P pixels(c.grid, tile);
    const int stride = record_stride(c.channels), sums_size = sums_stride(c.channels);
    const int32_t begin = c.offsets[tile], end = c.offsets[tile + 1];
    if (begin == end) return;
    const float *final_transmittance = c.transmittance + tile * P::kCount, *final_last = c.last + tile * P::kCount;
    const bool divide = c.expected && channel + kGroup == c.channels;

    // Gradients per pixel. The first group of channels adds alpha's gradient, the last group that of the division.
    float gradients[kGroup][P::kCount] = {}, behinds[P::kCount] = {}, lasts[P::kCount];
    for (int i = 0; i < P::kCount; ++i) lasts[i] = -1.0f;
    float furthest = -1.0f;
    pixels.each(c.grid, [&](int i, int64_t pixel) {
        const int64_t at = pixel * c.channels + channel;
        for (int d = 0; d < kGroup; ++d) gradients[d][i] = g.d_colors[at + d];
        float d_alpha = channel == 0 ? g.d_alphas[pixel] : 0.0f;
        const float alpha = c.alphas[pixel];
        if (divide) {
            gradients[kGroup - 1][i] /= alpha > 1e-10f ? alpha : 1e-10f;
            if (alpha > 1e-10f) d_alpha -= gradients[kGroup - 1][i] * c.colors[at + kGroup - 1];
        }
        behinds[i] = -d_alpha * final_transmittance[i];
        lasts[i] = final_last[i];
        furthest = lasts[i] > furthest ? lasts[i] : furthest;
    });
    Float transmittance[P::kVectors], behind[P::kVectors], last[P::kVectors], gradient[P::kVectors][kGroup];
    for (int k = 0; k < P::kVectors; ++k) {
        transmittance[k] = load(final_transmittance + k * kWidth);
        behind[k] = load(behinds + k * kWidth);
        last[k] = load(lasts + k * kWidth);
        for (int d = 0; d < kGroup; ++d) gradient[k][d] = load(gradients[d] + k * kWidth);
    }

    for (int32_t i = begin + int32_t(furthest); i >= begin; --i) {
        const float* r = c.records + int64_t(c.entries[i].id) * stride;
        if (i - 4 >= begin) __builtin_prefetch(c.records + int64_t(c.entries[i - 4].id) * stride);
        const Float f0(r[kFactor]), f1(r[kFactor + 1]), f2(r[kFactor + 2]), log_opacity(r[kLogOpacity]);
        const Float index(float(i - begin)), my(r[kMeanY]);
        Float dx[P::kColumns], u_of_x[P::kColumns];
        for (int k = 0; k < P::kColumns; ++k) {
            dx[k] = pixels.x[k] - Float(r[kMeanX]);
            u_of_x[k] = f0 * dx[k];
        }
        Float shape[8], weights[8];
        for (int j = 0; j < 8; ++j) shape[j] = Float(0.0f);
        for (int d = 0; d < 8; ++d) weights[d] = Float(0.0f);
        bool touched = false;
        for (int k = 0; k < P::kVectors; ++k) {
            const Float dy = pixels.y[k] - my;
            const Float u = fma(f1, dy, u_of_x[k % P::kColumns]), v = f2 * dy;
            const Float exponent = fnma(u, u, fnma(v, v, log_opacity));
            const Mask hit = (exponent >= Float(kLog2MinAlpha)) & (index <= last[k]);
            if (!any(hit)) continue;
            touched = true;
            const Float raw = exp2(exponent), alpha = min(raw, Float(c.max_alpha));
            const Float inverse = reciprocal(Float(1.0f) - alpha);
            const Float before = transmittance[k] * inverse;
            const Float weight = or_zero(hit, alpha * before);
            Float along(0.0f);
            for (int d = 0; d < kGroup; ++d) {
                along = fma(Float(r[kChannels + channel + d]), gradient[k][d], along);
                weights[d] = fma(weight, gradient[k][d], weights[d]);
            }
            const Float d_alpha = fnma(behind[k], inverse, before * along);
            const Float q = or_zero(hit & (raw <= Float(c.max_alpha)), alpha * d_alpha);
            behind[k] = fma(weight, along, behind[k]);
            transmittance[k] = select(hit, before, transmittance[k]);
            const Float qu = q * u, qdy = q * dy;
            shape[0] += q;
            shape[1] += qu;
            shape[2] += qdy;
            shape[3] = fma(qu, dx[k % P::kColumns], shape[3]);
            shape[4] = fma(qu, dy, shape[4]);
            shape[5] = fma(qdy, dy, shape[5]);
            if (kAbsolute) {
                shape[6] += abs(qu);
                shape[7] += abs(q * fma(f1, u, f2 * v));
            }
        }
        if (!touched) continue;
        float lanes[8], *sums = g.sums + int64_t(c.entries[i].slot) * sums_size;
        sum_lanes8(shape, lanes);
        for (int j = 0; j < 8; ++j) sums[j] = channel == 0 ? lanes[j] : sums[j] + lanes[j];
        g.used[c.entries[i].slot] = 1;
        if (kGroup <= 4) sum_lanes4(weights, lanes);
        else sum_lanes8(weights, lanes);
        for (int d = 0; d < kGroup; ++d) sums[kSumChannels + channel + d] = lanes[d];
    }
}

template <int kTile>
void composite_group(const Composite& c, int64_t tile, int channel) {
    const int left = c.channels - channel;
    if (left >= 6) return composite_tile<kTile, 6>(c, tile, channel);
    if (left == 5) return composite_tile<kTile, 5>(c, tile, channel);
    if (left == 4) return composite_tile<kTile, 4>(c, tile, channel);
    if (left == 3) return composite_tile<kTile, 3>(c, tile, channel);
    if (left == 2) return composite_tile<kTile, 2>(c, tile, channel);
    composite_tile<kTile, 1>(c, tile, channel);
}

template <int kTile, bool kAbsolute>
void composite_group_backward(const Composite& c, const CompositeGradient& g, int64_t tile, int channel) {
    const int left = c.channels - channel;
    if (left >= 6) return composite_tile_backward<kTile, 6, kAbsolute>(c, g, tile, channel);
    if (left == 5) return composite_tile_backward<kTile, 5, kAbsolute>(c, g, tile, channel);
    if (left == 4) return composite_tile_backward<kTile, 4, kAbsolute>(c, g, tile, channel);
    if (left == 3) return composite_tile_backward<kTile, 3, kAbsolute>(c, g, tile, channel);
    if (left == 2) return composite_tile_backward<kTile, 2, kAbsolute>(c, g, tile, channel);
    composite_tile_backward<kTile, 1, kAbsolute>(c, g, tile, channel);
}

template <bool kAbsolute>
void composite_all_backward(const Composite& c, const CompositeGradient& g, int64_t tile, int channel) {
    if (c.grid.tile == 8) composite_group_backward<8, kAbsolute>(c, g, tile, channel);
    else composite_group_backward<16, kAbsolute>(c, g, tile, channel);
}

}  // namespace

void composite(const Composite& c, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
        for (int channel = 0; channel < c.channels; channel += kMaxGroup) {
            if (c.grid.tile == 8) composite_group<8>(c, tile, channel);
            else composite_group<16>(c, tile, channel);
        }
}

void composite_backward(const Composite& c, const CompositeGradient& g, int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
        for (int channel = 0; channel < c.channels; channel += kMaxGroup) {
            if (g.absolute) composite_all_backward<true>(c, g, tile, channel);
            else composite_all_backward<false>(c, g, tile, channel);
        }
}

void reduce_sums(const Reduction& r, int64_t begin, int64_t end) {
    const int stride = sums_stride(r.channels);
    const float unscale = 1.0f / kFactorScale;
    for (int64_t n = begin; n < end; ++n) {
        float d_opacity = 0.0f;
        if (!r.colors_per_view)
            for (int d = 0; d < r.color_channels; ++d) r.d_colors[n * r.color_channels + d] = 0.0f;
        for (int64_t view = 0; view < r.views; ++view) {
            const int64_t id = view * r.count + n, slot = r.first_slot[id];
            const float *first = r.sums + slot * stride, *f = r.factors + 3 * id;
            // total[j]: sum of column + j over the splat's tiles, in order.
            float total[kSumChannels + kMaxGroup];
            const auto sum_columns = [&](int column, int wanted) {
                const int width = wanted < stride - column ? wanted : stride - column;
                for (int j = 0; j < width; ++j) total[j] = 0.0f;
                for (int i = 0; i < r.tiles_per_splat[id]; ++i)
                    if (r.used[slot + i])
                        for (int j = 0; j < width; ++j) total[j] += first[i * stride + column + j];
            };
            sum_columns(0, kSumChannels + kMaxGroup);
            if (r.opacities_per_view) r.d_opacities[id] = total[0] != 0.0f ? total[0] / r.opacities[id] : 0.0f;
            d_opacity += total[0];
            r.d_means2d[2 * id] = f[0] * unscale * total[1];
            r.d_means2d[2 * id + 1] = f[1] * unscale * total[1] + f[2] * f[2] * total[2];
            r.d_factors[3 * id] = -unscale * total[3];
            r.d_factors[3 * id + 1] = -unscale * total[4];
            r.d_factors[3 * id + 2] = -f[2] * total[5];
            if (r.absolute) {
                r.absolute_means2d[2 * id] = f[0] * unscale * total[6];
                r.absolute_means2d[2 * id + 1] = unscale * unscale * total[7];
            }
            const float* sums = total + kSumChannels;
            for (int channel = 0; channel < r.channels; channel += kMaxGroup) {
                if (channel > 0) {
                    sum_columns(kSumChannels + channel, kMaxGroup);
                    sums = total;
                }
                for (int d = channel; d < channel + kMaxGroup && d < r.channels; ++d) {
                    if (d == r.color_channels) r.d_depths[id] = sums[d - channel];
                    else if (r.colors_per_view) r.d_colors[id * r.color_channels + d] = sums[d - channel];
                    else r.d_colors[n * r.color_channels + d] += sums[d - channel];
                }
            }
        }
        // No list contains a Gaussian of opacity 0.
        if (!r.opacities_per_view) r.d_opacities[n] = d_opacity != 0.0f ? d_opacity / r.opacities[n] : 0.0f;
    }
}

}  // namespace GSCFD_ISA
}  // namespace gscfd
