// A small thread pool. Not OpenMP: torch ships its own, and two OpenMP runtimes in one process disturb each other.
#pragma once

#include <cstdint>

namespace gscfd {

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over [0, n) in pieces of at most `grain`, on `threads` threads including the
// caller. Which thread takes which piece is free, so a result must not depend on it. Returns when all are done.
// A nested call runs on its own thread alone.
void parallel_ranges(int threads, int64_t n, int64_t grain, RangeFunction function, void* context);

// parallel_for(threads, n, grain, [&](int64_t begin, int64_t end) { ... });
template <typename Body>
void parallel_for(int threads, int64_t n, int64_t grain, Body&& body) {
    parallel_ranges(
        threads, n, grain,
        [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

}  // namespace gscfd
