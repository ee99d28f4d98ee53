// Global memory: named buffers, apart from each other, in a region of their own.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

namespace emulation {

struct Buffer {
    std::string name;
    unsigned char* begin;
    size_t bytes;
    bool writable;
};

extern std::deque<Buffer> buffers;  // by address

// A buffer with a copy of what ``source`` points to, or, without, of 0xff (NaN, -1), which nobody wrote.
Buffer& add_buffer(std::string name, size_t bytes, const void* source, bool writable);
void remove_buffers();

}  // namespace emulation
