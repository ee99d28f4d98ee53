// Global memory: named buffers, apart from each other, in a region of their own.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

namespace emulation {

using Time = uint32_t;  // scheduler.h explains it

// Who accessed some memory last, and when. Thread 0 is nobody.
struct Mark {
    uint32_t thread = 0;
    Time time = 0;
};

constexpr uint32_t kHost = 0xffffffff;

// What is known of a few bytes: enough of those that read them to tell who is not ordered before a write.
struct Cell {
    Mark written, read, read_by_other_warp;
};

// Two bytes: the smallest that two threads may access independently.
constexpr size_t kCell = 2;

struct Buffer {
    std::string name;
    unsigned char* begin;
    size_t bytes;
    bool writable;
    std::vector<Cell> cells;
    Time begun = 0;    // of shared memory: what was done to it before, other blocks did
    Time counted = 0;  // the start of the last launch that has used a word of it as a counter
};

extern std::deque<Buffer> buffers;  // by address

// A buffer with a copy of what ``source`` points to, as far from a 16-byte boundary; or, without a source, one of 0xff
// (NaN, -1), which nobody wrote.
Buffer& add_buffer(std::string name, size_t bytes, const void* source, bool writable);
void remove_buffers();

bool in_global_memory(uintptr_t address);
// The buffer that the address is in, or else one that is next to it.
Buffer& nearest_buffer(uintptr_t address);

}  // namespace emulation
