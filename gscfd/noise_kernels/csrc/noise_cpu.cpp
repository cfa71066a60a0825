// CPU driver: enumerate, claim, gather, one view at a time, with the latent rows distributed among threads.
// Every sum follows the order of the render samples within its latent row, so results do not depend on threads.
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "noise_rows.h"
#include "parallel.h"

namespace gscfd {
namespace noise {
namespace {

// Hash table with open addressing. A cell's slot may depend on thread order; its final claim does not.
class ClaimTable {
  public:
    void reset(int64_t entries) {
        size_t size = 1024;
        while (size < size_t(2 * entries)) size *= 2;
        if (size > size_) {
            slots_.reset(new Slot[size]);
            size_ = size;
        }
        mask_ = size - 1;
        for (size_t i = 0; i < size; ++i) {
            slots_[i].cell.store(kNoKey, std::memory_order_relaxed);
            slots_[i].claim.store(~uint64_t(0), std::memory_order_relaxed);
        }
    }

    uint32_t claim(uint64_t cell, uint64_t claim) {
        size_t slot = mix(cell) & mask_;
        for (;; slot = (slot + 1) & mask_) {
            uint64_t found = slots_[slot].cell.load(std::memory_order_relaxed);
            const bool taken = found != kNoKey;
            if (!taken && slots_[slot].cell.compare_exchange_strong(found, cell, std::memory_order_relaxed)) break;
            if (found == cell) break;
        }
        std::atomic<uint64_t>& best = slots_[slot].claim;
        uint64_t current = best.load(std::memory_order_relaxed);
        while (claim < current && !best.compare_exchange_weak(current, claim, std::memory_order_relaxed)) {
        }
        return uint32_t(slot);
    }

    bool owns(const Candidate& candidate) const {
        return slots_[candidate.slot].claim.load(std::memory_order_relaxed) == candidate.claim;
    }

  private:
    struct Slot {
        std::atomic<uint64_t> cell, claim;
    };
    std::unique_ptr<Slot[]> slots_;
    size_t size_ = 0, mask_ = 0;
};

// Owner map of one view at a time. Later views reuse its buffers.
class OwnerMap {
  public:
    // radial: see enumerate_row.
    OwnerMap(const Geometry& geometry, int radial, int threads)
        : g_(geometry), radial_(radial), threads_(threads), rows_(geometry.latent_height) {
        stride_ = g_.render_width + 2 * margin(g_);
        const size_t size = size_t(stride_) * (g_.render_height + 2 * margin(g_));
        for (std::vector<float>* image : {&depth_, &inverse_, &smoothed_}) image->assign(size, 0.0f);
        covered_.resize(size_t(g_.latent_height) * g_.latent_width);
    }
    ~OwnerMap() {
        for (Candidates& row : rows_) free(row.items);
    }
    OwnerMap(const OwnerMap&) = delete;
    OwnerMap& operator=(const OwnerMap&) = delete;

    void build(const float* depth, const float* opacity, const float* viewmat, const float* K) {
        const Camera camera = make_camera(viewmat, K);
        for_render_rows([&](int row) {
            GSCFD_DISPATCH(mask_row, g_, row, depth, opacity, MaskedDepth{depth_.data(), inverse_.data(), stride_});
        });
        if (first_spacing(g_)) smooth();
        const MaskedDepth masked{depth_.data(), inverse_.data(), stride_};
        std::atomic<bool> complete{true};
        parallel_for(threads_, g_.latent_height, 1, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                int32_t* covered = covered_.data() + row * g_.latent_width;
                if (!GSCFD_DISPATCH(enumerate_row, g_, radial_, camera, masked, int(row), rows_[row], covered))
                    complete = false;
            }
        });
        if (!complete) throw std::bad_alloc();
        int64_t entries = 0;
        for (const Candidates& row : rows_) entries += row.size;
        table_.reset(entries);
        parallel_for(threads_, g_.latent_height, 1, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                for (int64_t i = 0; i < rows_[row].size; ++i) {
                    Candidate& candidate = rows_[row].items[i];
                    candidate.slot = table_.claim(candidate.cell, candidate.claim);
                }
            }
        });
    }

    // Writes the fraction of covered samples of each latent pixel in one latent row.
    void coverage(int row, float* out) const {
        const int rows = first_render_index(row + 1, g_.render_height, g_.latent_height) -
                         first_render_index(row, g_.render_height, g_.latent_height);
        for (int x = 0; x < g_.latent_width; ++x) {
            const int columns = first_render_index(x + 1, g_.render_width, g_.latent_width) -
                                first_render_index(x, g_.render_width, g_.latent_width);
            const int covered = covered_[size_t(row) * g_.latent_width + x];
            out[x] = covered ? float(covered) / float(rows * columns) : 0.0f;
        }
    }

    // Calls visit(cell, latent column) for each cell that a latent row owns, in order.
    template <typename Visit>
    void owned(int row, Visit&& visit) const {
        for (int64_t i = 0; i < rows_[row].size; ++i) {
            const Candidate& candidate = rows_[row].items[i];
            if (table_.owns(candidate)) visit(candidate.cell, candidate.column);
        }
    }

    int64_t candidates(int row) const { return rows_[row].size; }

  private:
    template <typename Visit>
    void for_render_rows(Visit&& visit) const {
        parallel_for(threads_, g_.render_height, 64, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) visit(int(row));
        });
    }

    void smooth() {
        for (int round = 0; round < g_.smoothing; ++round) {
            for (int spacing = first_spacing(g_); spacing > 0; spacing /= 2) {
                for_render_rows([&](int row) {
                    GSCFD_DISPATCH(smooth_row, g_, row, spacing, inverse_.data(), smoothed_.data(), stride_);
                });
                inverse_.swap(smoothed_);
            }
        }
        for_render_rows([&](int row) {
            GSCFD_DISPATCH(invert_row, g_, row, MaskedDepth{depth_.data(), inverse_.data(), stride_});
        });
    }

    Geometry g_;
    int radial_, threads_;
    int64_t stride_;
    std::vector<float> depth_, inverse_, smoothed_;
    std::vector<int32_t> covered_;
    std::vector<Candidates> rows_;
    ClaimTable table_;
};

// Computes one latent row: in each pixel, n^-1/2 times the sum of its n cells.
void gather_row(const Geometry& g, const OwnerMap& map, const Draws& draws, int row, int channels, float* noise,
                int32_t* counts) {
    const int64_t plane = int64_t(g.latent_height) * g.latent_width, start = int64_t(row) * g.latent_width;
    std::vector<uint64_t> cells;
    std::vector<uint32_t> columns;
    cells.reserve(map.candidates(row));
    columns.reserve(map.candidates(row));
    std::fill_n(counts + start, g.latent_width, 0);
    map.owned(row, [&](uint64_t cell, uint32_t column) {
        cells.push_back(cell);
        columns.push_back(column);
        ++counts[start + column];
    });
    for (int c = 0; c < channels; ++c) std::fill_n(noise + c * plane + start, g.latent_width, 0.0f);
    const int64_t size = int64_t(cells.size());
    GSCFD_DISPATCH(add_cells, draws, cells.data(), columns.data(), size, channels, noise + start, plane);
    for (int x = 0; x < g.latent_width; ++x) {
        const float scale = 1.0f / sqrtf(float(std::max(counts[start + x], 1)));
        for (int c = 0; c < channels; ++c) noise[c * plane + start + x] *= scale;
    }
}

}  // namespace
}  // namespace noise
}  // namespace gscfd

using namespace gscfd;
using namespace gscfd::noise;

// Computes noise [views, channels, h, w], counts and coverage [views, h, w] of the surface. radial: 0 for cells in
// columns along the axes, otherwise the number of cells along each side of the radial map. Returns 0, or 1 if out of
// memory.
GSCFD_EXPORT int gscfd_noise_surface(const Geometry* geometry, int radial, const float* depth, const float* opacity,
                                     const float* viewmats, const float* Ks, int views, int channels, uint64_t seed,
                                     uint32_t stream, const uint32_t* node, const float* weight, int nodes,
                                     float* noise, int32_t* counts, float* coverage, int threads) try {
    const Geometry& g = *geometry;
    const Draws draws{seed, stream, nodes, node, weight};
    const int64_t pixels = int64_t(g.latent_height) * g.latent_width;
    const int64_t samples = int64_t(g.render_height) * g.render_width;
    OwnerMap map(g, radial, threads);
    for (int64_t view = 0; view < views; ++view) {
        map.build(depth + view * samples, opacity + view * samples, viewmats + 16 * view, Ks + 9 * view);
        parallel_for(threads, g.latent_height, 1, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                map.coverage(int(row), coverage + view * pixels + row * g.latent_width);
                gather_row(g, map, draws, int(row), channels, noise + view * channels * pixels, counts + view * pixels);
            }
        });
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// Lists the cells of one view and the latent pixels that own them. Writes at most `capacity` of them; returns their
// number, or -1 if out of memory. radial: as above.
GSCFD_EXPORT int64_t gscfd_noise_owners(const Geometry* geometry, int radial, const float* depth, const float* opacity,
                                        const float* viewmat, const float* K, int64_t capacity, uint64_t* cells,
                                        int64_t* pixels, int threads) try {
    OwnerMap map(*geometry, radial, threads);
    map.build(depth, opacity, viewmat, K);
    int64_t size = 0;
    for (int row = 0; row < geometry->latent_height; ++row) {
        map.owned(row, [&](uint64_t cell, uint32_t column) {
            if (size < capacity) {
                cells[size] = cell;
                pixels[size] = int64_t(row) * geometry->latent_width + column;
            }
            ++size;
        });
    }
    return size;
} catch (const std::bad_alloc&) {
    return -1;
}

// Computes noise [views, channels, pixels] that depends on no surface, keyed on (seed, stream, key, pixel). A view's
// key is view_key of its matrices, or `key` if viewmats is null.
GSCFD_EXPORT void gscfd_noise_white(uint64_t seed, uint32_t stream, uint32_t key, const float* viewmats,
                                    const float* Ks, const uint32_t* node, const float* weight, int nodes, int views,
                                    int channels, int64_t pixels, float* noise, int threads) {
    constexpr int64_t kChunk = 256;
    const Draws draws{seed, stream, nodes, node, weight};
    const int64_t chunks = (pixels + kChunk - 1) / kChunk;
    parallel_for(threads, views * chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t view = chunk / chunks, first = chunk % chunks * kChunk;
            const int64_t size = std::min(kChunk, pixels - first);
            const uint32_t view_word = viewmats ? view_key(viewmats + 16 * view, Ks + 9 * view) : key;
            float* out = noise + view * channels * pixels + first;
            uint64_t cells[kChunk];
            uint32_t columns[kChunk];
            for (int64_t i = 0; i < size; ++i) {
                cells[i] = uint64_t(view_word) << 32 | uint64_t(first + i);
                columns[i] = uint32_t(i);
            }
            for (int c = 0; c < channels; ++c) std::fill_n(out + c * pixels, size, 0.0f);
            GSCFD_DISPATCH(add_cells, draws, cells, columns, size, channels, out, pixels);
        }
    });
}
