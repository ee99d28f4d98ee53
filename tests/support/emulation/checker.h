// What kernels that were compiled with -fsanitize=thread do to memory: every access is checked and counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "counters.h"
#include "memory.h"
#include "scheduler.h"

namespace emulation {

// Set where kernels are compiled so that they call here.
extern bool checking;

struct Access {
    uintptr_t address;
    size_t bytes;
    bool write;
    const void* code;  // the instruction behind it
};

// Before each access of a kernel. Does not return if it is wrong.
void check(const Access&);
// The same for memcpy and the like, if they go to shared or global memory.
void check_library(const Access&);

// The same for an atomic addition (write) or a relaxed load of a word of global memory; it is not counted.
void check_atomic(const Access&);
bool ordered_before_now(Mark);

// Throws if something in the buffer was never written.
void check_written(const Buffer&);

// Called by the scheduler.
void start_counting();
void finish_counting();
void check_end_of_cluster();

// Called for right accesses; the buffer is null for shared memory.
void count_access(const Access&, const Buffer*);

// The lanes' accesses by one instruction since their last meeting form the requests that a warp makes.
void count_requests(const Warp&);

// Of one buffer in one launch. What several lanes access in one request is counted once.
struct BufferTraffic {
    std::string name;
    uint64_t read, written;  // bytes
    uint64_t distinct;       // bytes that were accessed at all
    uint64_t requests, sectors;
};

struct LaunchTraffic {
    const void* kernel;
    uint64_t shared_bytes;  // that each block asks for
    std::vector<BufferTraffic> buffers;
    uint64_t shared_requests, bank_conflicts;  // a conflict: one more cycle than the bytes need
    std::vector<CounterValue> counters;
};

extern std::vector<LaunchTraffic> traffic;  // since it was last cleared

}  // namespace emulation
