// Launches the CUDA kernels of the noise by CUDA's driver, whose functions the caller passes: this file needs no CUDA.
//
// The caller passes scratch memory and a stream; nothing here allocates or waits. Unless noted, functions return 0 or a
// CUresult.
#include "dispatch.h"
#include "noise_cuda.h"

namespace gscfd {
namespace noise {
namespace {

constexpr int kInvalidValue = 1;  // CUDA_ERROR_INVALID_VALUE

struct Grid {
    int64_t x;
    int y = 1, z = 1;
};

template <typename T>
struct As {
    using Type = T;
};

// Launches kernels one after another until one fails.
struct Launches {
    const Launcher& launcher;
    void* stream;
    int error;

    Launches(const Launcher* launcher, void* stream)
        : launcher(*launcher), stream(stream), error(launcher->set_context(launcher->context)) {}

    // The second argument only gives the types of the kernel's parameters.
    template <typename... P>
    void operator()(Kernel kernel, void (*)(P...), Grid grid, typename As<P>::Type... parameters) {
        void* pointers[] = {&parameters...};
        if (error || grid.x == 0 || grid.y == 0 || grid.z == 0) return;
        error = launcher.launch(launcher.kernels[kernel], unsigned(grid.x), unsigned(grid.y), unsigned(grid.z),
                                kThreads, 1, 1, 0, stream, pointers, nullptr);
    }
};

#define GSCFD_SIGNATURE(kernel) static_cast<decltype(&kernel)>(nullptr)

// The draws from node `first` on, as many as fit into one launch.
Draws some_draws(uint64_t seed, uint32_t stream, const uint32_t* node, const float* weight, int first, int nodes) {
    Draws draws{};
    draws.seed = seed;
    draws.stream = stream;
    draws.nodes = nodes - first < kMaxNodes ? nodes - first : kMaxNodes;
    for (int i = 0; i < draws.nodes; ++i) draws.node[i] = node[first + i], draws.weight[i] = weight[first + i];
    return draws;
}

// Divides the memory at `base` (aligned to 256 bytes). Returns the number of bytes needed.
int64_t divide_scratch(const Geometry& g, int64_t views, int64_t slots, char* base, Scratch& s) {
    s.inverse_pitch = 1 / double(g.pitch);
    s.inverse_layer = 1 / double(g.layer_depth);
    s.margin = margin(g);
    s.first_spacing = first_spacing(g);
    s.padded = int64_t(g.render_width + 2 * s.margin) * (g.render_height + 2 * s.margin);
    int64_t size = 0;
    auto take = [&](auto*& pointer, int64_t count) {
        pointer = reinterpret_cast<decltype(+pointer)>(base + size);
        size += (count * int64_t(sizeof(*pointer)) + 255) / 256 * 256;
    };
    const int64_t pixels = int64_t(g.latent_width) * g.latent_height;
    const int64_t rows = (g.render_height + g.latent_height - 1) / g.latent_height;
    const int64_t columns = (g.render_width + g.latent_width - 1) / g.latent_width;
    s.slots = slots;
    s.capacity = slots / 4 * 3;
    s.chunks = int32_t((rows * columns + 31) / 32);
    take(s.cameras, views);
    take(s.needed, views * kCounterStride);
    take(s.row_starts, g.latent_height + 1);
    take(s.column_starts, g.latent_width + 1);
    take(s.samples, views * s.padded);
    for (float*& inverse : s.inverse) take(inverse, s.first_spacing ? views * s.padded : 0);
    take(s.segments, views * pixels * s.chunks);
    take(s.candidates, views * s.capacity);
    take(s.table, views * slots);
    return size;
}

int64_t blocks_of(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace noise
}  // namespace gscfd

using namespace gscfd;
using namespace gscfd::noise;

// Returns the bytes of scratch memory for a table of `slots` (a power of two, at least 4, below 2^31) per view.
GSCFD_EXPORT int64_t gscfd_cuda_noise_scratch(const Geometry* geometry, int views, int64_t slots) {
    Scratch scratch;
    return divide_scratch(*geometry, views, slots, nullptr, scratch);
}

// Like gscfd_noise_surface, on device memory. scratch: aligned to 256 bytes. needed [views][kCounterStride]: pinned
// host memory or null; once the stream gets there, the first word of each row receives the number of candidates of that
// view. A view with more than slots / 4 * 3 candidates gets no cells at all: its counts and noise are 0.
GSCFD_EXPORT int gscfd_cuda_noise_surface(const Geometry* geometry, const float* depth, const float* opacity,
                                          const float* viewmats, const float* Ks, int views, int channels,
                                          uint64_t seed, uint32_t stream_of_draws, const uint32_t* node,
                                          const float* weight, int nodes, float* noise, int32_t* counts,
                                          float* coverage, void* scratch, int64_t slots, int64_t* needed,
                                          const Launcher* launcher, void* stream) {
    const Geometry& g = *geometry;
    if (g.normal_radius > kMaxRadius) return kInvalidValue;
    Scratch s;
    divide_scratch(g, views, slots, static_cast<char*>(scratch), s);
    Launches launch(launcher, stream);
    const int64_t pixels = int64_t(g.latent_width) * g.latent_height;
    const int64_t items = larger(larger(s.padded, slots), larger(g.latent_width, g.latent_height) + 1);
    launch(kPrepare, GSCFD_SIGNATURE(gscfd_kernel_prepare), {blocks_of(items, kThreads), views}, g, s, depth, opacity,
           viewmats, Ks);
    const Grid smooth{blocks_of(int64_t(g.render_width) * g.render_height, kThreads), views};
    for (int round = 0, source = 0; round < g.smoothing; ++round) {
        for (int spacing = s.first_spacing; spacing > 0; spacing /= 2, source = 1 - source) {
            const bool last = round == g.smoothing - 1 && spacing == 1;
            launch(kSmooth, GSCFD_SIGNATURE(gscfd_kernel_smooth), smooth, g, s, spacing, source, last);
        }
    }
    launch(kEnumerate, GSCFD_SIGNATURE(gscfd_kernel_enumerate), {blocks_of(pixels * s.chunks, kWarps), views}, g, s);
    const Grid gather{blocks_of(pixels, kWarps), views, int(blocks_of(channels, 4))};
    for (int first = 0; first < nodes; first += kMaxNodes) {
        const Draws draws = some_draws(seed, stream_of_draws, node, weight, first, nodes);
        launch(kGather, GSCFD_SIGNATURE(gscfd_kernel_gather), gather, g, s, draws, channels, first > 0, noise, counts,
               coverage);
    }
    if (launch.error || !needed || !views) return launch.error;
    return launcher->copy_to_host(needed, reinterpret_cast<uint64_t>(s.needed),
                                  views * kCounterStride * sizeof(AtomicWord), stream);
}

// Like gscfd_noise_white, on device memory.
GSCFD_EXPORT int gscfd_cuda_noise_white(uint64_t seed, uint32_t stream_of_draws, uint32_t key, const float* viewmats,
                                        const float* Ks, const uint32_t* node, const float* weight, int nodes,
                                        int views, int channels, int64_t pixels, float* noise, const Launcher* launcher,
                                        void* stream) {
    Launches launch(launcher, stream);
    const Grid grid{blocks_of(pixels, kThreads), views, int(blocks_of(channels, 4))};
    for (int first = 0; first < nodes; first += kMaxNodes) {
        const Draws draws = some_draws(seed, stream_of_draws, node, weight, first, nodes);
        launch(kWhite, GSCFD_SIGNATURE(gscfd_kernel_white), grid, draws, key, viewmats, Ks, channels, pixels, first > 0,
               noise);
    }
    return launch.error;
}

// Computes out [views, channels, pixels] = sqrt(a) noise + sqrt(1 - a) background, where a is the coverage if counts >
// 0 and 0 otherwise. background: [views, channels, pixels], or [channels, pixels] if one_background is set.
GSCFD_EXPORT int gscfd_cuda_noise_compose(int views, int channels, int64_t pixels, const float* noise,
                                          const int32_t* counts, const float* coverage, const float* background,
                                          int one_background, float* out, const Launcher* launcher, void* stream) {
    Launches launch(launcher, stream);
    launch(kCompose, GSCFD_SIGNATURE(gscfd_kernel_compose), {blocks_of(pixels, kThreads), views, channels}, channels,
           pixels, noise, counts, coverage, background, one_background ? 0 : channels * pixels, out);
    return launch.error;
}
