// Runs the kernels of a .cu file on the CPU: include this file, then the .cu file. For tests, not for speed.
//
// Every thread of a block is a coroutine; blocks run one after another. Blocks and threads take turns in an order drawn
// from a seed, and threads also give way before atomics, so that a result that depends on the order of threads changes
// with the seed. A collective that not all lanes of a warp reach ends the kernel with an error.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx;

namespace emulator {

constexpr size_t kStack = 1 << 16;

struct Warp {
    int arrived = 0, collective = 0;
    uint64_t generation = 0, values[2][32];
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    bool done;
};

inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Warp block_barrier;
inline ucontext_t scheduler;
inline const std::function<void()>* body;
inline const char* failure = nullptr;
inline uint64_t progress = 0;
inline int current = 0, block_size = 0;
inline std::mt19937 order(0);

inline void give_way() { swapcontext(&threads[current].context, &scheduler); }

inline void fail(const char* message) {
    failure = message;
    give_way();
}

// Waits until `size` threads have left a value; returns all of them.
inline const uint64_t* meet(Warp& group, int size, int place, int collective, uint64_t value) {
    const uint64_t generation = group.generation;
    if (group.arrived > 0 && group.collective != collective) fail("lanes of a warp are at different collectives");
    group.collective = collective;
    if (place < 32) group.values[generation & 1][place] = value;
    ++progress;
    if (++group.arrived == size) {
        group.arrived = 0;
        ++group.generation;
    }
    while (group.generation == generation) give_way();
    return group.values[generation & 1];
}

inline const uint64_t* exchange(int collective, uint64_t value) {
    return meet(warps[current / 32], 32, current % 32, collective, value);
}

inline void run_thread() {
    (*body)();
    threads[current].done = true;
    ++progress;
    give_way();
}

inline void run_block(const std::function<void()>& kernel, int size) {
    body = &kernel;
    block_size = size;
    threads.resize(std::max(threads.size(), size_t(size)));
    warps.assign((size + 31) / 32, Warp());
    block_barrier = Warp();
    for (int i = 0; i < size; ++i) {
        getcontext(&threads[i].context);
        threads[i].context.uc_stack.ss_sp = threads[i].stack.get();
        threads[i].context.uc_stack.ss_size = kStack;
        threads[i].done = false;
        makecontext(&threads[i].context, run_thread, 0);
    }
    std::vector<int> alive(size);
    for (int i = 0; i < size; ++i) alive[i] = i;
    while (!alive.empty() && !failure) {
        std::shuffle(alive.begin(), alive.end(), order);
        const uint64_t before = progress;
        for (int i : alive) {
            current = i;
            threadIdx = dim3(i);
            swapcontext(&scheduler, &threads[i].context);
            if (failure) return;
        }
        alive.erase(std::remove_if(alive.begin(), alive.end(), [](int i) { return threads[i].done; }), alive.end());
        if (progress == before) failure = "a collective waits for threads that never come";
    }
}

inline void launch(dim3 grid, dim3 size, const std::function<void()>& kernel) {
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) blocks.push_back(dim3(x, y, z));
        }
    }
    std::shuffle(blocks.begin(), blocks.end(), order);
    for (const dim3& block : blocks) {
        blockIdx = block;
        if (!failure) run_block(kernel, int(size.x));
    }
}

template <typename T>
uint64_t bits_of(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T>
T value_of(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

inline void before_atomic() {
    ++progress;
    if (order() % 8 == 0) give_way();
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(emulator::block_barrier, emulator::block_size, 32, 1, 0); }
inline void __syncwarp() {
#ifndef WITHOUT_SYNCWARP
    emulator::exchange(2, 0);
#endif
}
inline unsigned __ballot_sync(unsigned, bool value) {
    const uint64_t* all = emulator::exchange(3, value);
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) ballot |= unsigned(all[i]) << i;
    return ballot;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulator::value_of<T>(emulator::exchange(4, emulator::bits_of(value))[lane]);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int distance) {
    const int lane = emulator::current % 32;
    return emulator::value_of<T>(emulator::exchange(5, emulator::bits_of(value))[std::max(lane - distance, 0)]);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    const int lane = emulator::current % 32;
    return emulator::value_of<T>(emulator::exchange(6, emulator::bits_of(value))[lane ^ mask]);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

using Word = unsigned long long;
inline Word atomicCAS(Word* address, Word expected, Word value) {
    emulator::before_atomic();
    const Word old = *address;
    if (old == expected) *address = value;
    return old;
}
inline Word atomicMin(Word* address, Word value) {
    emulator::before_atomic();
    const Word old = *address;
#ifdef WITHOUT_ATOMICS
    emulator::before_atomic();
#endif
    *address = std::min(old, value);
    return old;
}
inline Word atomicAdd(Word* address, Word value) {
    emulator::before_atomic();
    const Word old = *address;
    *address = old + value;
    return old;
}

// Chooses another order of blocks and threads and clears a failure.
extern "C" __attribute__((visibility("default"))) void emulator_reset(uint32_t seed) {
    emulator::order.seed(seed);
    emulator::failure = nullptr;
}
