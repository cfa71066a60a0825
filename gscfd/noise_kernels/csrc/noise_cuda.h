// What the CUDA kernels of the noise (noise_cuda.cu) and their caller on the host (noise_launch.cpp) share.
#pragma once

#include "noise_core.h"

namespace gscfd {
namespace noise {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // per block
constexpr int kMaxRadius = 15;
constexpr int kMaxNodes = 128;      // per launch; more nodes take more launches
constexpr int kCounterStride = 16;  // words between the counters of two views: atomics on one cache line wait in turn
static_assert(sizeof(Camera) % 8 == 0, "a camera is copied in words of 8 bytes");

using AtomicWord = unsigned long long;  // the 64-bit type of CUDA's atomics

#ifndef __CUDACC__
struct alignas(8) float2 {
    float x, y;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
#endif

// A cell and the smallest claim on it so far.
struct alignas(16) Slot {
    AtomicWord cell, claim;
};

// The caller's scratch memory, and constants that all threads need.
struct Scratch {
    double inverse_pitch, inverse_layer;
    int32_t margin, first_spacing;
    int64_t padded;          // samples of a view, margin included
    Camera* cameras;         // [views]
    AtomicWord* needed;      // [views][kCounterStride] candidates found; if > capacity, the view's table is too small
    int32_t* row_starts;     // [latent_height + 1] first render row of each latent row
    int32_t* column_starts;  // [latent_width + 1]
    float2* samples;    // [views][render_height + 2 margin][render_width + 2 margin] depth and 1 / depth, 0: no surface
    float* inverse[2];  // same shape as samples: 1 / depth during smoothing
    uint2* segments;    // [views][latent pixels][chunks] first candidate; covered samples << 16 | candidates
    uint2* candidates;  // [views][capacity] slot, render sample
    Slot* table;        // [views][slots]
    int64_t slots, capacity;
    int32_t chunks;  // segments per latent pixel
};

// The Ornstein-Uhlenbeck bridge as a weighted sum of draws.
struct Draws {
    uint64_t seed;
    uint32_t stream;
    int32_t nodes;
    uint32_t node[kMaxNodes];
    float weight[kMaxNodes];
};

#ifndef __CUDACC__
enum Kernel { kPrepare, kSmooth, kEnumerate, kGather, kWhite, kCompose, kKernels };

// The functions of CUDA's driver that a call needs, and the kernels of one device. _Launcher in gscfd/noise_kernels
// mirrors this struct. Functions return 0 or a CUresult.
struct Launcher {
    int (*set_context)(void* context);
    int (*launch)(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                  unsigned block_z, unsigned shared_bytes, void* stream, void** arguments, void** extra);
    int (*copy_to_host)(void* target, uint64_t source, size_t bytes, void* stream);
    void* context;
    void* kernels[kKernels];
};

extern "C" {
void gscfd_kernel_prepare(Geometry g, Scratch s, const float* depth, const float* opacity, const float* viewmats,
                          const float* Ks);
void gscfd_kernel_smooth(Geometry g, Scratch s, int spacing, int source, bool last);
void gscfd_kernel_enumerate(Geometry g, Scratch s);
void gscfd_kernel_gather(Geometry g, Scratch s, Draws draws, int channels, bool accumulate, float* noise,
                         int32_t* counts, float* coverage);
void gscfd_kernel_white(Draws draws, uint32_t key, const float* viewmats, const float* Ks, int channels, int64_t pixels,
                        bool accumulate, float* noise);
void gscfd_kernel_compose(int channels, int64_t pixels, const float* noise, const int32_t* counts,
                          const float* coverage, const float* background, int64_t background_view, float* out);
}
#endif

}  // namespace noise
}  // namespace gscfd
