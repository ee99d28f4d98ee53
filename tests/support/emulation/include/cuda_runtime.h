// What kernels use of the CUDA language, for g++. A launch runs the kernel to its end before it returns.
#pragma once

#include <math.h>
#include <string.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <source_location>
#include <tuple>
#include <type_traits>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max, std::min;

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

using Place = std::source_location;

unsigned char* dynamic_shared();
// The variable that is declared at this place.
void* static_shared(size_t bytes, Place = Place::current());
void sync_block(Place);
void sync_warp(unsigned mask, Place);
// The bits that ``lane`` of this warp passed.
uint64_t shuffle(unsigned mask, uint64_t bits, unsigned lane, Place);
unsigned ballot(unsigned mask, bool, Place);
// The lanes of the mask that passed the same.
unsigned match_any(unsigned mask, uint64_t bits, Place);
unsigned lane();
void wait_for_launch_before();
unsigned atomic_add(unsigned* address, unsigned value);
unsigned relaxed_load(const unsigned* address, Place = Place::current());
void fence();

struct Kernel {
    const void* code;
    const void* arguments;
    size_t argument_bytes;
    void (*call)(const void* arguments);
};
cudaError_t launch(const cudaLaunchConfig_t&, const Kernel&);

template <class T> T shuffle(unsigned mask, T v, unsigned source, Place place) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    return std::bit_cast<T>(Bits(shuffle(mask, uint64_t(std::bit_cast<Bits>(v)), source, place)));
}

}  // namespace emulation

inline void __syncthreads(emulation::Place place = emulation::Place::current()) { emulation::sync_block(place); }

inline void cudaGridDependencySynchronize() { emulation::wait_for_launch_before(); }

inline void __syncwarp(unsigned mask = 0xffffffffu, emulation::Place place = emulation::Place::current()) {
    emulation::sync_warp(mask, place);
}

inline unsigned atomicAdd(unsigned* address, unsigned value) { return emulation::atomic_add(address, value); }
inline void __threadfence() { emulation::fence(); }
inline void __nanosleep(unsigned) {}  // relaxed_load sleeps

template <class T> T __shfl_sync(unsigned mask, T v, int source, emulation::Place place = emulation::Place::current()) {
    return emulation::shuffle(mask, v, source & 31, place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, emulation::Place place = emulation::Place::current()) {
    return emulation::shuffle(mask, v, (emulation::lane() ^ bits) & 31, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned step, emulation::Place place = emulation::Place::current()) {
    const unsigned lane = emulation::lane();
    return emulation::shuffle(mask, v, lane + step < 32 ? lane + step : lane, place);
}

inline unsigned __ballot_sync(unsigned mask, int vote, emulation::Place place = emulation::Place::current()) {
    return emulation::ballot(mask, vote, place);
}

inline unsigned __match_any_sync(unsigned mask, int v, emulation::Place place = emulation::Place::current()) {
    return emulation::match_any(mask, uint32_t(v), place);
}

inline int __popc(unsigned v) { return std::popcount(v); }
inline int __ffs(unsigned v) { return v ? std::countr_zero(v) + 1 : 0; }

template <class... Parameters, class... Arguments> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                                                                                  void (*kernel)(Parameters...),
                                                                                  Arguments&&... arguments) {
    struct Call {
        void (*kernel)(Parameters...);
        std::tuple<std::remove_cv_t<Parameters>...> arguments;
    };
    const Call call{kernel, {Parameters(arguments)...}};
    return emulation::launch(*config, {reinterpret_cast<const void*>(kernel), &call, sizeof call, [](const void* p) {
                                           const Call& call = *static_cast<const Call*>(p);
                                           std::apply(call.kernel, call.arguments);
                                       }});
}
