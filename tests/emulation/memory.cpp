#include "memory.h"

#include <string.h>
#include <sys/mman.h>

#include <new>

namespace emulation {

std::deque<Buffer> buffers;

namespace {

constexpr size_t kRegion = size_t(16) << 30;
constexpr size_t kAlignment = 256;  // what cudaMalloc promises
constexpr size_t kGap = 4096;       // between two buffers

unsigned char* region() {
    static void* const p =
        mmap(nullptr, kRegion, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return static_cast<unsigned char*>(p);
}

}  // namespace

Buffer& add_buffer(std::string name, size_t bytes, const void* source, bool writable) {
    unsigned char* begin = region() + kGap;
    if (!buffers.empty()) {
        const size_t end = buffers.back().begin + buffers.back().bytes - region();
        begin = region() + (end + kGap + kAlignment - 1) / kAlignment * kAlignment;
    }
    if (begin + bytes + kGap > region() + kRegion) throw std::bad_alloc();
    memset(begin - kGap, 0xff, kGap);
    memset(begin + bytes, 0xff, kGap);
    if (source)
        memcpy(begin, source, bytes);
    else
        memset(begin, 0xff, bytes);
    return buffers.emplace_back(Buffer{std::move(name), begin, bytes, writable});
}

void remove_buffers() { buffers.clear(); }

}  // namespace emulation
