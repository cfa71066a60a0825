// CUDA kernels: prepare, smooth, enumerate and claim, gather, compose, with one launch per phase for all views.
//
// A segment is 32 render samples of one latent pixel, one per lane of a warp. Candidates are stored in the order of the
// lanes, a latent pixel sums its cells in the order of its segments and lanes, and there are no float atomics. Results
// therefore do not depend on the order of threads, on the batch, or on the size of the table.
//
// noise_launch.cpp launches the kernels. gscfd/gpu/nvrtc.py compiles this file on the user's machine;
// tests/cuda_on_cpu.h runs it on the CPU.
#include "noise_core.h"
#include "noise_cuda.h"

// C linkage: the name of a kernel in the compiled code is its name here.
#define GSCFD_KERNEL extern "C" __global__ void __launch_bounds__(kThreads)

namespace gscfd {
namespace noise {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// ---- Prepare: mask the depth, clear the table -----------------------------------------------------------------------

// Threads: max(padded samples, slots, latent sizes + 1) x views.
GSCFD_KERNEL gscfd_kernel_prepare(const Geometry g, const Scratch s, const float* __restrict__ depth,
                                  const float* __restrict__ opacity, const float* __restrict__ viewmats,
                                  const float* __restrict__ Ks) {
    const int64_t view = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    const int width = g.render_width + 2 * s.margin;
    if (i < s.padded) {
        const int y = int(i) / width - s.margin, x = int(i) % width - s.margin;
        float2 sample = make_float2(0, 0);
        if (x >= 0 && x < g.render_width && y >= 0 && y < g.render_height) {
            const int64_t source = (view * g.render_height + y) * g.render_width + x;
            const float z = depth[source];
            if (covers(g, z, opacity[source])) sample = make_float2(z, 1 / z);
        }
        s.samples[view * s.padded + i] = sample;
        if (s.first_spacing) {
            s.inverse[0][view * s.padded + i] = sample.y;
            s.inverse[1][view * s.padded + i] = 0;
        }
    }
    if (i < s.slots) {
        s.table[view * s.slots + i] = Slot{kNoKey, kNoKey};
    }
    if (i == 0) {
        s.cameras[view] = make_camera(viewmats + 16 * view, Ks + 9 * view);
        s.needed[view * kCounterStride] = 0;
    }
    if (view == 0 && i <= g.latent_height) {
        s.row_starts[i] = first_render_index(int(i), g.render_height, g.latent_height);
    }
    if (view == 0 && i <= g.latent_width) {
        s.column_starts[i] = first_render_index(int(i), g.render_width, g.latent_width);
    }
}

// ---- Smooth ---------------------------------------------------------------------------------------------------------

// One pass, from s.inverse[source] into the other image or, if it is the last pass, into the samples.
// Threads: samples x views.
GSCFD_KERNEL gscfd_kernel_smooth(const Geometry g, const Scratch s, int spacing, int source, bool last) {
    const int64_t view = blockIdx.y, i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= int64_t(g.render_width) * g.render_height) return;
    const int stride = g.render_width + 2 * s.margin;
    const int64_t row = i / g.render_width + s.margin, column = i % g.render_width + s.margin;
    const int64_t at = view * s.padded + row * stride + column;
    if (!(s.inverse[source][at] > 0)) return;
    const float inverse = smoothed(s.inverse[source] + at, stride, spacing, kReach * g.pitch);
    if (last) {
        s.samples[at] = make_float2(1 / inverse, inverse);
    } else {
        s.inverse[1 - source][at] = inverse;
    }
}

// ---- Enumerate and claim --------------------------------------------------------------------------------------------

// A covered render sample, ready to visit its columns.
struct Sample {
    Projection projection;
    double along;
    int32_t axis, outward, column_u, column_v, first_u, last_u, first_v, last_v;
    float z, slope_u, slope_v, within_u, within_v;
};

// kRadius: the radius, if the loops are to be unrolled; otherwise 0.
template <int kRadius>
__device__ __forceinline__ SlopeFit fit_slopes(const float2* center, int stride, int radius, const float* limits) {
    const int r = kRadius ? kRadius : radius;
    const float z = center->x, inverse = center->y;
    SlopeFit fit;
#pragma unroll
    for (int dy = -r; dy <= r; ++dy) {
#pragma unroll
        for (int dx = -r; dx <= r; ++dx) {
            if (dx == 0 && dy == 0) continue;
            const float2 other = center[int64_t(dy) * stride + dx];
            const float limit = limits[(dy < 0 ? -dy : dy) * (r + 1) + (dx < 0 ? -dx : dx)];
            add_neighbor(fit, z, inverse, other.x, other.y, float(dx), float(dy), limit);
        }
    }
    return fit;
}

__device__ __forceinline__ Sample examine(const Geometry& g, const Scratch& s, const Camera& camera,
                                          const float2* center, int stride, int column, int row, const float* limits) {
    const SlopeFit fit = g.normal_radius == 1 ? fit_slopes<1>(center, stride, 1, limits)
                                              : fit_slopes<0>(center, stride, g.normal_radius, limits);
    const double x = (column + 0.5 - camera.cx) * camera.inverse_fx, y = (row + 0.5 - camera.cy) * camera.inverse_fy;
    const float z = center->x, inverse_pitch = 1 / g.pitch;
    const Tangent tangent = tangent_plane(camera, float(x), float(y), z, center->y, fit);
    const Place p = place(camera, x, y, z, tangent.axis, s.inverse_pitch, s.inverse_layer);
    Sample sample;
    sample.projection = project_plane(camera, float(x), float(y), tangent);
    sample.along = p.along;
    sample.axis = tangent.axis, sample.outward = tangent.outward;
    sample.column_u = p.column_u, sample.column_v = p.column_v;
    sample.first_u = first_column(p.within_u, tangent.low_u * inverse_pitch);
    sample.last_u = last_column(p.within_u, tangent.high_u * inverse_pitch);
    sample.first_v = first_column(p.within_v, tangent.low_v * inverse_pitch);
    sample.last_v = last_column(p.within_v, tangent.high_v * inverse_pitch);
    sample.z = z, sample.slope_u = tangent.slope_u, sample.slope_v = tangent.slope_v;
    sample.within_u = p.within_u, sample.within_v = p.within_v;
    if (!p.valid) sample.last_u = sample.first_u - 1;
    return sample;
}

// Calls visit(column u, column v, coordinate along the axis) for each column of a sample, in order.
template <typename Visit>
__device__ __forceinline__ void visit_columns(const Sample& s, float pitch, Visit&& visit) {
    for (int iu = s.first_u; iu <= s.last_u; ++iu) {
        for (int iv = s.first_v; iv <= s.last_v; ++iv) {
            const float du = (iu + 0.5f - s.within_u) * pitch, dv = (iv + 0.5f - s.within_v) * pitch;
            if (!projects_inside(s.projection, s.z, du, dv)) continue;
            visit(s.column_u + iu, s.column_v + iv, s.along - (s.slope_u * du + s.slope_v * dv));
        }
    }
}

// Enters a claim on a cell; returns the cell's slot. There are fewer cells than slots, so an empty slot always exists.
// A cell's slot may depend on the order of threads; its final claim does not.
__device__ __forceinline__ uint32_t claim_cell(Slot* table, uint64_t mask, uint64_t cell, uint64_t claim) {
    uint64_t slot = mix(cell) & mask;
    for (;; slot = (slot + 1) & mask) {
        const uint64_t found = atomicCAS(&table[slot].cell, AtomicWord(kNoKey), AtomicWord(cell));
        if (found == kNoKey || found == cell) break;
    }
    atomicMin(&table[slot].claim, AtomicWord(claim));
    return uint32_t(slot);
}

// The sum of `value` over this lane and those before it.
__device__ __forceinline__ int inclusive_sum(int value, int lane) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(kAllLanes, value, distance);
        if (lane >= distance) value += before;
    }
    return value;
}

// Reserves `total` places for each warp of the block by one addition to the counter; returns the warp's first place.
// All threads of the block take part.
__device__ __forceinline__ AtomicWord reserve(AtomicWord* counter, int total, int lane) {
    __shared__ int totals[kWarps];
    __shared__ AtomicWord block_first;
    const int warp = threadIdx.x / 32;
    if (lane == 0) totals[warp] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (int i = 0; i < kWarps; ++i) sum += totals[i];
        block_first = sum ? atomicAdd(counter, AtomicWord(sum)) : 0;
    }
    __syncthreads();
    AtomicWord first = block_first;
    for (int i = 0; i < warp; ++i) first += totals[i];
    return first;
}

// One warp per segment; blocks: (segments of a view / kWarps) x views.
GSCFD_KERNEL gscfd_kernel_enumerate(const Geometry g, const Scratch s) {
    __shared__ float limits[(kMaxRadius + 1) * (kMaxRadius + 1)];
    __shared__ uint64_t camera_words[sizeof(Camera) / 8];
    const int64_t view = blockIdx.y;
    const Camera& source = s.cameras[view];
    const int side = g.normal_radius + 1;
    for (int i = threadIdx.x; i < side * side; i += kThreads) {
        limits[i] = neighbor_limit(source.fx, source.fy, i % side, i / side);
    }
    for (int i = threadIdx.x; i < int(sizeof(Camera) / 8); i += kThreads) {
        camera_words[i] = reinterpret_cast<const uint64_t*>(&source)[i];
    }
    const Camera& camera = *reinterpret_cast<const Camera*>(camera_words);
    __syncthreads();

    const int pixels = g.latent_width * g.latent_height, lane = threadIdx.x % 32;
    // Warps after the last segment go through the block's barriers with the others, on the last segment.
    const uint32_t segments = uint32_t(pixels) * s.chunks, own = blockIdx.x * kWarps + threadIdx.x / 32;
    const bool exists = own < segments;
    const uint32_t segment = exists ? own : segments - 1;
    const int pixel = int(segment / s.chunks), chunk = int(segment % s.chunks);
    const int latent_row = pixel / g.latent_width, latent_column = pixel % g.latent_width;
    const int first_row = s.row_starts[latent_row], rows = s.row_starts[latent_row + 1] - first_row;
    const int first_column = s.column_starts[latent_column];
    const int columns = s.column_starts[latent_column + 1] - first_column;

    const int index = 32 * chunk + lane;
    const int stride = g.render_width + 2 * s.margin;
    const float2* center = nullptr;
    int row = 0, column = 0;
    if (exists && index < rows * columns) {
        row = first_row + index / columns, column = first_column + index % columns;
        center = s.samples + view * s.padded + (row + s.margin) * int64_t(stride) + column + s.margin;
    }
    const bool covered = center != nullptr && center->x > 0;
    const unsigned all_covered = __ballot_sync(kAllLanes, covered);

    Sample sample;
    int count = 0;
    if (covered) {
        sample = examine(g, s, camera, center, stride, column, row, limits);
        visit_columns(sample, g.pitch, [&](int, int, double) { ++count; });
    }
    const int place_after = inclusive_sum(count, lane), total = __shfl_sync(kAllLanes, place_after, 31);
    const AtomicWord first = reserve(s.needed + view * kCounterStride, total, lane);
    const bool fits = first + total <= AtomicWord(s.capacity);
    if (exists && lane == 0) {
        uint2* out = s.segments + view * pixels * s.chunks + segment;
        *out = make_uint2(fits ? uint32_t(first) : 0, __popc(all_covered) << 16 | (fits ? total : 0));
    }
    if (!covered || !fits) return;

    Slot* table = s.table + view * s.slots;
    uint2* candidate = s.candidates + view * s.capacity + first + (place_after - count);
    const uint32_t id = uint32_t(row) * g.render_width + column;
    visit_columns(sample, g.pitch, [&](int column_u, int column_v, double along) {
        const uint64_t key = column_key(sample.axis, sample.outward, column_u, column_v);
        const uint64_t claim = claim_of(along, sample.outward, s.inverse_pitch, id);
        const uint32_t slot = claim_cell(table, s.slots - 1, cell_key(key, along, s.inverse_layer), claim);
        *candidate++ = make_uint2(slot, id);
    });
}

// ---- Gather ---------------------------------------------------------------------------------------------------------

// Adds `size` cells of one warp to the sums of four channels, one (cell, draw) per lane at a time.
__device__ __forceinline__ void add_cells(const AtomicWord* cells, int size, const Draws& draws, const uint32_t* node,
                                          const float* weight, uint32_t block, int lane, float sum[4]) {
    const int cell_step = 32 / draws.nodes, node_step = 32 % draws.nodes;
    int cell = lane / draws.nodes, n = lane % draws.nodes;
    while (cell < size) {
        float draw[4];
        normals(draws.seed, draws.stream, cells[cell], node[n], block, draw);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] = multiply_add(weight[n], draw[c], sum[c]);
        cell += cell_step;
        n += node_step;
        if (n >= draws.nodes) n -= draws.nodes, ++cell;
    }
}

// Copies the bridge's draws to shared memory, where each lane can read its own.
__device__ __forceinline__ void load_draws(const Draws& draws, uint32_t* node, float* weight) {
    for (int i = threadIdx.x; i < draws.nodes; i += kThreads) node[i] = draws.node[i], weight[i] = draws.weight[i];
    __syncthreads();
}

// One warp per latent pixel; blocks: (latent pixels / kWarps) x views x blocks of four channels.
// accumulate: add to the result of an earlier launch.
GSCFD_KERNEL gscfd_kernel_gather(const Geometry g, const Scratch s, const __grid_constant__ Draws draws, int channels,
                                 bool accumulate, float* __restrict__ noise, int32_t* __restrict__ counts,
                                 float* __restrict__ coverage) {
    __shared__ uint32_t node[kMaxNodes];
    __shared__ float weight[kMaxNodes];
    __shared__ AtomicWord owned_cells[kWarps][64];
    load_draws(draws, node, weight);

    const int64_t view = blockIdx.y, pixels = int64_t(g.latent_width) * g.latent_height;
    const int lane = threadIdx.x % 32;
    const int64_t pixel = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
    if (pixel >= pixels) return;
    AtomicWord* owned = owned_cells[threadIdx.x / 32];
    const bool complete = s.needed[view * kCounterStride] <= AtomicWord(s.capacity);
    const Slot* table = s.table + view * s.slots;
    float sum[4] = {0, 0, 0, 0};
    int waiting = 0, count = 0, covered = 0;  // waiting: number of cells in `owned`
    for (int chunk = 0; chunk < s.chunks; ++chunk) {
        const uint2 segment = s.segments[(view * pixels + pixel) * s.chunks + chunk];
        const uint2* candidates = s.candidates + view * s.capacity + segment.x;
        const int size = complete ? int(segment.y & 0xFFFF) : 0;
        covered += int(segment.y >> 16);
        for (int first = 0; first < size; first += 32) {
            Slot slot = {kNoKey, kNoKey};
            bool mine = false;
            if (first + lane < size) {
                const uint2 candidate = candidates[first + lane];
                slot = table[candidate.x];
                mine = uint32_t(slot.claim) == candidate.y;
            }
            const unsigned all_mine = __ballot_sync(kAllLanes, mine);
            if (mine) owned[waiting + __popc(all_mine & ((1u << lane) - 1))] = slot.cell;
            waiting += __popc(all_mine);
            count += __popc(all_mine);
            __syncwarp();
            if (waiting >= 32) {
                add_cells(owned, 32, draws, node, weight, blockIdx.z, lane, sum);
                __syncwarp();
                waiting -= 32;
                if (lane < waiting) owned[lane] = owned[32 + lane];
                __syncwarp();
            }
        }
    }
    add_cells(owned, waiting, draws, node, weight, blockIdx.z, lane, sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] += __shfl_xor_sync(kAllLanes, sum[c], distance);
    }

    const float scale = 1.0f / sqrtf(float(count > 1 ? count : 1));
    const float mine = scale * (lane == 0 ? sum[0] : lane == 1 ? sum[1] : lane == 2 ? sum[2] : sum[3]);
    const int channel = 4 * int(blockIdx.z) + lane;
    if (lane < 4 && channel < channels) {
        float* out = noise + (view * channels + channel) * pixels + pixel;
        *out = accumulate ? *out + mine : mine;
    }
    if (blockIdx.z == 0 && lane == 0) {
        const int row = int(pixel) / g.latent_width, column = int(pixel) % g.latent_width;
        const int rows = s.row_starts[row + 1] - s.row_starts[row];
        const int columns = s.column_starts[column + 1] - s.column_starts[column];
        counts[view * pixels + pixel] = count;
        coverage[view * pixels + pixel] = covered ? float(covered) / float(rows * columns) : 0.0f;
    }
}

// ---- The image plane ------------------------------------------------------------------------------------------------

// Threads: latent pixels x views x blocks of four channels.
GSCFD_KERNEL gscfd_kernel_white(const __grid_constant__ Draws draws, uint32_t key, const float* __restrict__ viewmats,
                                const float* __restrict__ Ks, int channels, int64_t pixels, bool accumulate,
                                float* __restrict__ noise) {
    __shared__ uint32_t view_word;
    const int64_t view = blockIdx.y, pixel = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (threadIdx.x == 0) view_word = viewmats ? view_key(viewmats + 16 * view, Ks + 9 * view) : key;
    __syncthreads();
    if (pixel >= pixels) return;
    const uint64_t cell = uint64_t(view_word) << 32 | uint64_t(pixel);
    float sum[4] = {0, 0, 0, 0};
    for (int n = 0; n < draws.nodes; ++n) {
        float draw[4];
        normals(draws.seed, draws.stream, cell, draws.node[n], blockIdx.z, draw);
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] = multiply_add(draws.weight[n], draw[c], sum[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        const int channel = 4 * int(blockIdx.z) + c;
        if (channel >= channels) break;
        float* out = noise + (view * channels + channel) * pixels + pixel;
        *out = accumulate ? *out + sum[c] : sum[c];
    }
}

// Threads: latent pixels x views x channels. background_view: distance between the backgrounds of two views in
// elements; 0 if all views share one.
GSCFD_KERNEL gscfd_kernel_compose(int channels, int64_t pixels, const float* __restrict__ noise,
                                  const int32_t* __restrict__ counts, const float* __restrict__ coverage,
                                  const float* __restrict__ background, int64_t background_view,
                                  float* __restrict__ out) {
    const int64_t pixel = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t view = blockIdx.y, channel = blockIdx.z;
    if (pixel >= pixels) return;
    const float alpha = counts[view * pixels + pixel] > 0 ? coverage[view * pixels + pixel] : 0.0f;
    const int64_t i = (view * channels + channel) * pixels + pixel;
    const float behind = background[view * background_view + channel * pixels + pixel];
    out[i] = sqrtf(alpha) * noise[i] + sqrtf(1 - alpha) * behind;
}

}  // namespace noise
}  // namespace gscfd
