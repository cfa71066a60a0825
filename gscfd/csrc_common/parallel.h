// A small thread pool. It replaces OpenMP because torch ships its own OpenMP runtime and two of them in one process
// slow each other down.
#pragma once

#include <cstdint>

namespace gscfd {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over [0, n) in pieces of at most `grain` on `threads` threads, the caller
// included, and returns when all pieces are done. Any thread may take any piece, so results must not depend on it.
// A nested call runs entirely on its own thread.
void parallel_ranges(int threads, int64_t n, int64_t grain, RangeFunction function, void* context);

// parallel_for(threads, n, grain, [&](int64_t begin, int64_t end) { ... });
template <typename Body>
void parallel_for(int threads, int64_t n, int64_t grain, Body&& body) {
    parallel_ranges(
        threads, n, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace gscfd
