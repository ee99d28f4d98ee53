#include "memory.h"

#include <sanitizer/asan_interface.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "checker.h"

namespace emulation {

std::deque<Buffer> buffers;

namespace {

constexpr size_t kRegion = size_t(16) << 30;
constexpr size_t kAlignment = 256;  // what cudaMalloc promises
constexpr size_t kWidest = 16;      // access: a copy begins as far from a multiple of it as its source
constexpr size_t kGap = 4096;       // between two buffers

unsigned char* const region = [] {
    void* p = mmap(nullptr, kRegion, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return static_cast<unsigned char*>(p);
}();

}  // namespace

Buffer& add_buffer(std::string name, size_t bytes, const void* source, bool writable) {
    size_t offset = kGap;
    if (!buffers.empty()) offset += buffers.back().begin + buffers.back().bytes - region;
    offset = (offset + kAlignment - 1) / kAlignment * kAlignment + uintptr_t(source) % kWidest;
    if (offset + bytes + kGap > kRegion) throw std::bad_alloc();
    unsigned char* begin = region + offset;
    ASAN_UNPOISON_MEMORY_REGION(begin - kGap, bytes + 2 * kGap);
    memset(begin - kGap, 0xff, kGap);
    memset(begin + bytes, 0xff, kGap);
    if (source) memcpy(begin, source, bytes);
    else memset(begin, 0xff, bytes);
    ASAN_POISON_MEMORY_REGION(begin - kGap, kGap);
    ASAN_POISON_MEMORY_REGION(begin + bytes, kGap);
    Buffer& buffer = buffers.emplace_back(Buffer{std::move(name), begin, bytes, writable, {}});
    if (checking) buffer.cells.assign((bytes + kCell - 1) / kCell, source ? Cell{{kHost, 0}, {}, {}} : Cell{});
    return buffer;
}

void remove_buffers() { buffers.clear(); }

bool in_global_memory(uintptr_t address) { return address - uintptr_t(region) < kRegion; }

Buffer& nearest_buffer(uintptr_t address) {
    const auto starts_behind = [](uintptr_t a, const Buffer& b) { return a < uintptr_t(b.begin); };
    const auto next = std::upper_bound(buffers.begin(), buffers.end(), address, starts_behind);
    if (next == buffers.begin()) return *next;
    const auto before = std::prev(next);
    const uintptr_t end = uintptr_t(before->begin) + before->bytes;
    return next != buffers.end() && address > end && uintptr_t(next->begin) - address < address - end ? *next : *before;
}

}  // namespace emulation
