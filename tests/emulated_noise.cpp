// The CUDA kernels of the noise as a library for the CPU, behind the driver's functions that noise_launch.cpp calls.
#include "cuda_on_cpu.h"
#include "noise_cuda.cu"

using namespace gscfd::noise;

namespace {

using Call = std::function<void(void**)>;

// Runs one thread of a kernel with its parameters, which the driver receives as addresses.
template <typename... P, size_t... i>
Call call_of(void (*kernel)(P...), std::index_sequence<i...>) {
    return [=](void** parameters) { kernel(*static_cast<P*>(parameters[i])...); };
}

template <typename... P>
Call call_of(void (*kernel)(P...)) {
    return call_of(kernel, std::index_sequence_for<P...>());
}

Call calls[kKernels] = {call_of(gscfd_kernel_prepare), call_of(gscfd_kernel_smooth), call_of(gscfd_kernel_enumerate),
                        call_of(gscfd_kernel_gather),  call_of(gscfd_kernel_white),  call_of(gscfd_kernel_compose)};

int state() { return emulator::failure ? 999 : 0; }

int set_context(void*) { return state(); }

int launch(void* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned size, unsigned, unsigned, unsigned,
           void*, void** parameters, void**) {
    const Call& call = *static_cast<Call*>(kernel);
    emulator::launch(dim3(grid_x, grid_y, grid_z), dim3(size), [&] { call(parameters); });
    return state();
}

int copy_to_host(void* target, uint64_t source, size_t size, void*) {
    memcpy(target, reinterpret_cast<void*>(source), size);
    return state();
}

Launcher launcher = {set_context, launch, copy_to_host, nullptr, {}};

}  // namespace

extern "C" __attribute__((visibility("default"))) const Launcher* emulator_launcher() {
    for (int i = 0; i < kKernels; ++i) launcher.kernels[i] = &calls[i];
    return &launcher;
}

extern "C" __attribute__((visibility("default"))) const char* emulator_failure() {
    return emulator::failure ? emulator::failure : "no error";
}
