#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace gscfd {
namespace {

constexpr int64_t kChunk = 512;
constexpr int64_t kFar = 32, kNear = 12;  // how many splats ahead of its use memory is asked for

// First pixel whose center is at or to the right of x, and last pixel whose center is at or to its left.
int first_pixel(float x, int size) {
    x = std::min(std::max(x - 0.5f, 0.0f), float(size));
    const int i = int(x);
    return i + (x > float(i));
}
int last_pixel(float x, int size) { return int(std::min(std::max(x + 0.5f, 0.0f), float(size))) - 1; }

// Appends, row by row, the tiles with a pixel center at which the splat's alpha reaches kMinAlpha. Each row is exact:
// an ellipse cut by a horizontal strip is convex, so its projection onto the x axis gives the columns that it touches.
void append_spans(const Tiles& in, int64_t id, std::vector<Span>& spans) {
    const Grid& grid = in.grid;
    const float mx = in.means2d[2 * id], my = in.means2d[2 * id + 1];
    const float f0 = in.factors[3 * id], f1 = in.factors[3 * id + 1], f2 = in.factors[3 * id + 2];
    // (f0 dx + f1 dy)^2 + (f2 dy)^2 <= reach, made slightly larger to allow for rounding.
    const float two_ln2 = 1.3862943611198906f, margin = 1e-3f;
    const float reach =
        two_ln2 * (in.log_opacities[in.opacities_per_view ? id : id % in.count] - kLog2MinAlpha) * 1.0001f + 1e-3f;
    const float root = std::sqrt(reach), inverse_f0 = 1.0f / f0, f22 = f2 * f2;
    const float half_height = root / f2 + margin;
    const float peak = -f1 * root / (f2 * std::sqrt(f1 * f1 + f22));  // dy of the rightmost point

    const int first_y = first_pixel(my - half_height, grid.height), last_y = last_pixel(my + half_height, grid.height);
    if (first_y > last_y) return;
    const int last_row = last_y / grid.tile;
    for (int row = first_y / grid.tile; row <= last_row; ++row) {
        const float low = std::max(row * grid.tile + 0.5f - my, -half_height);
        const float high = std::min((row + 1) * grid.tile - 0.5f - my, half_height);
        const float right_dy = std::min(std::max(peak, low), high), left_dy = std::min(std::max(-peak, low), high);
        const float right_root = std::sqrt(std::max(reach - f22 * right_dy * right_dy, 0.0f));
        const float left_root = std::sqrt(std::max(reach - f22 * left_dy * left_dy, 0.0f));
        const int first_x = first_pixel(mx - (left_root + f1 * left_dy) * inverse_f0 - margin, grid.width);
        const int last_x = last_pixel(mx + (right_root - f1 * right_dy) * inverse_f0 + margin, grid.width);
        if (first_x > last_x) continue;
        spans.push_back({0, uint16_t(row), uint16_t(first_x / grid.tile), uint16_t(last_x / grid.tile + 1)});
    }
}

void spans_of_chunk(Tiling& t, int64_t chunk) {
    const Tiles& in = t.input;
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, in.views * in.count);
    std::vector<Span>& spans = t.spans[chunk];
    spans.reserve(4 * kChunk);
    for (int64_t id = begin; id < end; ++id) {
        const size_t before = spans.size();
        t.first_span[id] = int64_t(before);
        if (in.radii[2 * id] > 0) append_spans(in, id, spans);
        int32_t tiles = 0;
        for (size_t i = before; i < spans.size(); ++i) {
            spans[i].slot = tiles;
            tiles += spans[i].end - spans[i].begin;
        }
        in.tiles_per_splat[id] = tiles;
    }
}

// Sorts the visible splats of a view by depth: a stable radix sort of the float's bits (positive floats sort like
// integers), over no more bits than differ.
void sort_view(Tiling& t, int64_t view) {
    struct Item {
        uint32_t key;
        int32_t index;
    };
    const Tiles& in = t.input;
    std::vector<Item> items, other;
    items.reserve(in.count);
    uint32_t low = UINT32_MAX, high = 0;
    for (int64_t i = 0; i < in.count; ++i) {
        const int64_t id = view * in.count + i;
        if (in.radii[2 * id] <= 0) continue;
        uint32_t key;
        std::memcpy(&key, in.depths + id, sizeof key);
        items.push_back({key, int32_t(i)});
        low = std::min(low, key);
        high = std::max(high, key);
    }
    constexpr int kBits = 11;
    other.resize(items.size());
    for (int shift = 0; shift < 32 && !items.empty() && ((high - low) >> shift) != 0; shift += kBits) {
        int32_t starts[1 << kBits] = {};
        const auto digit = [&](const Item& e) { return ((e.key - low) >> shift) & ((1u << kBits) - 1); };
        for (const Item& e : items) ++starts[digit(e)];
        int32_t sum = 0;
        for (int32_t& start : starts) {
            const int32_t n = start;
            start = sum;
            sum += n;
        }
        for (const Item& e : items) other[starts[digit(e)]++] = e;
        items.swap(other);
    }
    t.visible[view] = int64_t(items.size());
    int32_t* order = t.order.data() + view * in.count;
    for (size_t i = 0; i < items.size(); ++i) order[i] = items[i].index;
}

}  // namespace

Tiling* begin_tiling(const Tiles& input, int threads) {
    const int64_t splats = input.views * input.count, chunks = (splats + kChunk - 1) / kChunk;
    Tiling* t = new Tiling;
    t->input = input;
    t->spans.resize(chunks);
    t->first_span.resize(splats);
    t->order.resize(splats);
    t->visible.resize(input.views);
    parallel_for(threads, input.views + chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            if (task < input.views) sort_view(*t, task);
            else spans_of_chunk(*t, task - input.views);
        }
    });
    int64_t slot = 0;
    for (int64_t id = 0; id < splats; ++id) {
        input.first_slot[id] = slot;
        slot += input.tiles_per_splat[id];
    }
    input.first_slot[splats] = slot;
    return t;
}

void finish_tiling(const Tiling& t, int threads, int32_t* offsets, Entry* entries, int64_t* keys) {
    const Tiles& in = t.input;
    const Grid& grid = in.grid;
    const int64_t tiles = int64_t(grid.tiles_x) * grid.tiles_y;

    const auto for_spans = [&](int64_t id, auto&& body) {
        const Span* span = t.spans[id / kChunk].data() + t.first_span[id];
        for (int32_t left = in.tiles_per_splat[id]; left > 0; left -= span->end - span->begin, ++span) body(*span);
    };
    parallel_for(threads, in.views, 1, [&](int64_t begin, int64_t end) {
        for (int64_t view = begin; view < end; ++view) {
            int32_t* counts = offsets + view * tiles;
            std::fill(counts, counts + tiles, 0);
            for (int64_t id = view * in.count; id < (view + 1) * in.count; ++id)
                for_spans(id, [&](const Span& s) {
                    for (int x = s.begin; x < s.end; ++x) ++counts[s.row * grid.tiles_x + x];
                });
        }
    });
    int32_t sum = 0;
    for (int64_t tile = 0; tile <= in.views * tiles; ++tile) {
        const int32_t n = tile < in.views * tiles ? offsets[tile] : 0;
        offsets[tile] = sum;
        sum += n;
    }
    int tile_bits = 0;
    while (tiles >> tile_bits) ++tile_bits;
    // Each task fills a band of tile rows of one view, so two threads never write to the same list.
    const int bands = int(std::min<int64_t>(grid.tiles_y, (threads + in.views - 1) / in.views));
    parallel_for(threads, in.views * bands, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t view = task / bands, band = task % bands;
            const int first_row = int(band * grid.tiles_y / bands);
            const int last_row = int((band + 1) * grid.tiles_y / bands);
            std::vector<int32_t> next(offsets + view * tiles + first_row * grid.tiles_x,
                                      offsets + view * tiles + last_row * grid.tiles_x);
            const int64_t base = view * in.count, visible = t.visible[view];
            const int32_t* order = t.order.data() + base;
            for (int64_t i = 0; i < visible; ++i) {
                // Splats sorted by depth are scattered over memory; most of the time would go into waiting for it.
                if (i + kFar < visible) {
                    const int64_t far = base + order[i + kFar];
                    __builtin_prefetch(t.first_span.data() + far);
                    __builtin_prefetch(in.tiles_per_splat + far);
                    __builtin_prefetch(in.first_slot + far);
                    __builtin_prefetch(in.depths + far);
                }
                if (i + kNear < visible) {
                    const int64_t near = base + order[i + kNear];
                    __builtin_prefetch(t.spans[near / kChunk].data() + t.first_span[near]);
                }
                const int64_t id = base + order[i];
                uint32_t depth;
                std::memcpy(&depth, in.depths + id, sizeof depth);
                for_spans(id, [&](const Span& s) {
                    if (s.row < first_row || s.row >= last_row) return;
                    int32_t slot = int32_t(in.first_slot[id]) + s.slot;
                    for (int x = s.begin; x < s.end; ++x) {
                        const int64_t tile = int64_t(s.row) * grid.tiles_x + x;
                        const int32_t place = next[tile - int64_t(first_row) * grid.tiles_x]++;
                        entries[place] = {int32_t(id), slot++};
                        keys[place] = (((view << tile_bits) | tile) << 32) | depth;
                    }
                });
            }
        }
    });
}

}  // namespace gscfd
