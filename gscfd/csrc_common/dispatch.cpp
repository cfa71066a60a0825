#include "dispatch.h"

#include <atomic>

namespace gscfd {
namespace {

bool supported(Isa isa) {
#ifdef GSCFD_HAS_AVX512
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
    return isa == Isa::baseline;
}

Isa widest() {
    if (supported(Isa::avx512)) return Isa::avx512;
    return supported(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{widest()};
    return isa;
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

}  // namespace gscfd

// Returns the instruction set in use: 0 baseline, 1 AVX2 + FMA, 2 AVX-512.
GSCFD_EXPORT int gscfd_isa() { return int(gscfd::current_isa()); }

// Chooses an instruction set. Returns 0, or 1 if this CPU or this library lacks it.
GSCFD_EXPORT int gscfd_set_isa(int isa) {
    if (isa < 0 || isa > 2 || !gscfd::supported(static_cast<gscfd::Isa>(isa))) return 1;
    gscfd::chosen().store(static_cast<gscfd::Isa>(isa));
    return 0;
}
