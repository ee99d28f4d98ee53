// Words of global memory at which the blocks of a launch meet, by atomic additions, fences, and loads that wait.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

// What a counter was at the end of a launch.
struct CounterValue {
    std::string buffer;
    size_t index;  // of the word in the buffer
    unsigned value;
};

// The kernel has added to a word among these bytes, in this launch, and the current thread does not know of it.
bool has_unknown_addition(uintptr_t address, size_t bytes);

// Called by the scheduler.
void start_counters();
std::vector<CounterValue> counter_values();
std::string describe_counter(const void* address);

}  // namespace emulation
