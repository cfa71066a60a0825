// Choice of the instruction set at run time.
#pragma once

#define GSCFD_EXPORT extern "C" __attribute__((visibility("default")))

namespace gscfd {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// Returns the widest instruction set that both this library and this CPU support, or the one set by gscfd_set_isa.
Isa current_isa();

}  // namespace gscfd

// GSCFD_DECLARE(void, blur, (const float*, int)) declares the function in the namespace of every instruction set;
// GSCFD_DISPATCH(blur, image, n) calls the one that suits this CPU.
#ifdef GSCFD_HAS_AVX512
#define GSCFD_DECLARE(result, name, parameters) \
    namespace gscfd::baseline {                 \
    result name parameters;                     \
    }                                           \
    namespace gscfd::avx2 {                     \
    result name parameters;                     \
    }                                           \
    namespace gscfd::avx512 {                   \
    result name parameters;                     \
    }
#define GSCFD_DISPATCH(name, ...)                                                        \
    (::gscfd::current_isa() == ::gscfd::Isa::avx512 ? ::gscfd::avx512::name(__VA_ARGS__) \
     : ::gscfd::current_isa() == ::gscfd::Isa::avx2 ? ::gscfd::avx2::name(__VA_ARGS__)   \
                                                    : ::gscfd::baseline::name(__VA_ARGS__))
#else
#define GSCFD_DECLARE(result, name, parameters) \
    namespace gscfd::baseline {                 \
    result name parameters;                     \
    }
#define GSCFD_DISPATCH(name, ...) ::gscfd::baseline::name(__VA_ARGS__)
#endif
