// Bounds, alignment, races and reads of what nobody wrote.
#include "checker.h"

extern "C" {
// The first and the last byte of this module in memory.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace emulation {

bool checking = false;

namespace {

// The shared memory of the cluster's blocks, as buffers: of each block the dynamic part, then its variables.
std::vector<Buffer>& shared_buffers() {
    static std::vector<Buffer> buffers = [] {
        std::vector<Buffer> result;
        for (uint32_t b = 0; b < kClusterLimit; ++b) {
            const std::string name = "shared memory of block " + std::to_string(b) + " of the cluster";
            unsigned char* begin = shared_memory + b * kSharedPitch;
            result.push_back({name, begin, 0, true, std::vector<Cell>(kShared / kCell)});
            result.push_back({"variables in " + name, begin + kStaticShared, kStaticBytes, true,
                              std::vector<Cell>(kStaticBytes / kCell)});
        }
        return result;
    }();
    return buffers;
}

struct Remote {  // the last access of another block to the shared memory of one
    Mark mark;
    const void* code;
};
Remote remote[kClusterLimit];

[[noreturn]] void fail(const Access& access, std::string kind, const std::string& where) {
    const char* what = access.write ? "a write of " : "a read of ";
    emulation::fail(std::move(kind), what + std::to_string(access.bytes) + " bytes " + where, access.code);
}

std::string at(const Buffer& buffer, ptrdiff_t offset) {
    return "at byte " + std::to_string(offset) + " of the " + std::to_string(buffer.bytes) + " of " + buffer.name;
}

bool same_warp(uint32_t a, uint32_t b) {
    const uint32_t threads = running.threads_of_block, i = a - 1, j = b - 1;
    return i / threads == j / threads && i % threads / 32 == j % threads / 32;
}

void check_races(const Access& access, const Buffer& buffer, size_t offset, Cell& cell) {
    const auto race = [&](Mark mark, const char* other) {
        if (mark.time < buffer.begun || ordered_before_now(mark)) return;
        const uint32_t thread = (mark.thread - 1) % running.threads_of_block;
        const uint32_t block = (mark.thread - 1) / running.threads_of_block;
        fail(access, "race",
             at(buffer, offset) + ", which thread " + std::to_string(thread) + " of block " + std::to_string(block) +
                 other + " with no barrier between");
    };
    race(cell.written, " writes");
    const Mark now{current->id, running.now};
    if (access.write) {
        race(cell.read, " reads");
        race(cell.read_by_other_warp, " reads");
        cell.written = now;
    } else {
        if (cell.read.time >= running.started && !same_warp(cell.read.thread, now.thread))
            cell.read_by_other_warp = cell.read;
        cell.read = now;
    }
}

void check_cells(const Access& access, Buffer& buffer, bool atomic) {
    const size_t begin = access.address - uintptr_t(buffer.begin);
    for (size_t i = begin / kCell; i * kCell < begin + access.bytes; ++i) {
        Cell& cell = buffer.cells[i];
        if ((!access.write || atomic) && (!cell.written.thread || cell.written.time < buffer.begun))
            fail(access, "unwritten", at(buffer, begin) + ", of which nobody wrote byte " + std::to_string(i * kCell));
        // A copy: atomic accesses race with others alone, and counters.cpp knows of them.
        Cell copy = cell;
        check_races(access, buffer, begin, atomic ? copy : cell);
    }
}

// Of a word that is a counter in this launch.
void check_counters(const Access& access, const Buffer& buffer) {
    if (buffer.counted != running.started || !has_unknown_addition(access.address, access.bytes)) return;
    fail(access, "race", at(buffer, access.address - uintptr_t(buffer.begin)) + ", to which another block adds");
}

void check_bounds(const Access& access, const Buffer& buffer) {
    const ptrdiff_t offset = access.address - uintptr_t(buffer.begin);
    if (offset < 0 || offset + access.bytes > buffer.bytes) fail(access, "out of bounds", at(buffer, offset));
    if (access.write && !buffer.writable) fail(access, "write to an argument", at(buffer, offset));
}

// Shared memory of another block is there between the first and the last meeting of the cluster.
void check_remote(const Access& access, const Buffer& buffer, uint32_t rank) {
    if (rank == current->block->rank) return;
    if (running.together) fail(access, "out of bounds", "in the shared memory of another block, of no cluster");
    if (running.cluster_met == running.cluster_started)
        fail(access, "block not started",
             at(buffer, access.address - uintptr_t(buffer.begin)) + ", before the cluster has met for the first time");
    remote[rank] = {{current->id, running.now}, access.code};
}

Buffer& shared_buffer(const Access& access) {
    const uint32_t rank = (access.address - uintptr_t(shared_memory)) / kSharedPitch;
    if (rank >= running.blocks.size()) fail(access, "out of bounds", "in shared memory of no block");
    const bool variable = (access.address - uintptr_t(shared_memory)) % kSharedPitch >= kStaticShared;
    Buffer& buffer = shared_buffers()[2 * rank + variable];
    if (buffer.begun != running.cluster_started) {
        if (!variable) buffer.bytes = running.config.dynamicSmemBytes;
        buffer.begun = running.cluster_started;
    }
    check_bounds(access, buffer);
    check_remote(access, buffer, rank);
    return buffer;
}

bool in_shared_memory(uintptr_t address) { return address - uintptr_t(shared_memory) < kSharedPitch * kClusterLimit; }

bool is_stack(uintptr_t address) { return address - uintptr_t(current->stack) < kStack; }

// Arguments of the kernel, and constants, among which are threadIdx and the like.
bool is_constant(const Access& access) {
    const auto inside = [&](const void* p, size_t bytes) { return access.address - uintptr_t(p) < bytes; };
    return !access.write && (inside(running.kernel.arguments, running.kernel.argument_bytes) ||
                             inside(__ehdr_start, _end - __ehdr_start));
}

void check_alignment(const Access& access, const Buffer& buffer) {
    // Of a copy of 12 bytes only the 4 that divide them.
    if (access.bytes <= 16 && access.address % (access.bytes & -access.bytes))
        fail(access, "misaligned", at(buffer, access.address - uintptr_t(buffer.begin)));
}

}  // namespace

bool ordered_before_now(Mark mark) {
    if (mark.time < running.started || mark.thread == current->id) return true;
    const uint32_t thread = mark.thread - 1, block = thread / running.threads_of_block;
    const uint32_t first = (running.threads[0].id - 1) / running.threads_of_block, rank = block - first;
    if (rank >= running.blocks.size()) return false;
    if (rank != current->block->rank) {
        const auto known = [&](const Clocks& clocks) { return rank < clocks.size() && mark.time < clocks[rank]; };
        return running.together ? known(current->block->known) || known(current->known)
                                : mark.time < running.cluster_met;
    }
    const bool same_warp = thread % running.threads_of_block / 32 == (current->id - 1) % running.threads_of_block / 32;
    return mark.time < (same_warp ? current->warp->met : current->block->met);
}

void check(const Access& access) {
    if (!current || is_stack(access.address)) return;
    const bool shared = in_shared_memory(access.address);
    if (!shared && !in_global_memory(access.address)) {
        if (is_constant(access)) return;
        fail(access, "out of bounds", "outside all memory");
    }
    Buffer& buffer = shared ? shared_buffer(access) : nearest_buffer(access.address);
    if (!shared && running.early && !current->follows)
        fail(access, "race",
             at(buffer, access.address - uintptr_t(buffer.begin)) +
                 ", which the launch before this one, which may be running, may access");
    if (!shared) check_bounds(access, buffer), check_counters(access, buffer);
    check_alignment(access, buffer);
    check_cells(access, buffer, false);
    count_access(access, shared ? nullptr : &buffer);
}

void check_atomic(const Access& access) {
    if (!in_global_memory(access.address)) fail(access, "out of bounds", "as a counter, outside global memory");
    Buffer& buffer = nearest_buffer(access.address);
    check_bounds(access, buffer);
    check_alignment(access, buffer);
    check_cells(access, buffer, true);
    buffer.counted = running.started;
}

void check_library(const Access& access) {
    if (current && access.bytes && (in_shared_memory(access.address) || in_global_memory(access.address)))
        check(access);
}

void check_written(const Buffer& buffer) {
    for (size_t i = 0; i < buffer.cells.size(); ++i)
        if (!buffer.cells[i].written.thread) fail("unwritten", "nobody wrote " + at(buffer, i * kCell));
}

void check_end_of_cluster() {
    for (uint32_t b = 0; b < running.blocks.size(); ++b)
        if (remote[b].mark.time >= running.cluster_met)
            fail("block has ended",
                 "thread " + std::to_string((remote[b].mark.thread - 1) % running.threads_of_block) +
                     " accesses the shared memory of another block, which may have ended: the cluster does not meet "
                     "again",
                 remote[b].code);
}

}  // namespace emulation
