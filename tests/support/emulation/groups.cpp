// Barriers and shuffles: where the threads of a warp, a block or a cluster wait for each other.
#include <cooperative_groups.h>

#include <algorithm>

#include "checker.h"

namespace emulation {

void wake(Thread&);
void wait_for_others(Wait, Place);
void block_has_met(Block&);

namespace {

bool same(const Place& a, const Place& b) {
    return a.line() == b.line() && a.column() == b.column() && !strcmp(a.file_name(), b.file_name());
}

constexpr size_t kStaticPitch = 16;  // from one variable in shared memory to the next

std::string index(const uint3& i) {
    if (!i.y && !i.z) return std::to_string(i.x);
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

// The last warp of a block may have fewer lanes; those it lacks are not waited for.
unsigned existing(unsigned mask) { return mask & (0xffffffffu >> (32 - current->warp->lanes)); }

// True for the last of the mask's lanes, which finds the others waiting.
bool meet_in_warp(Wait wait, unsigned mask, Place place) {
    Warp& warp = *current->warp;
    if (!(mask >> current->lane & 1)) fail("divergent barrier", "a lane is not in the mask it passes");
    auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(), [&](const Meeting& m) {
        return m.wait == wait && m.mask == mask && same(m.place, place);
    });
    if (meeting == warp.meetings.end()) meeting = warp.meetings.insert(meeting, {wait, mask, 0, place});
    meeting->arrived |= 1u << current->lane;
    if (meeting->arrived != mask) {
        wait_for_others(wait, place);
        return false;
    }
    warp.meetings.erase(meeting);
    if (checking && mask == existing(~0u)) count_requests(warp);
    return true;
}

template <class F> void for_lanes(unsigned mask, F f) {
    for (; mask; mask &= mask - 1) f(running.threads[current->warp->first + std::countr_zero(mask)]);
}

void wake_lanes(unsigned mask) {
    for_lanes(mask, [](Thread& thread) {
        if (&thread != current) wake(thread);
    });
}

// Threads and warps of consecutive blocks lie one after another.
void wake_blocks(uint32_t first, uint32_t count) {
    const uint32_t threads = running.threads_of_block, warps = (threads + 31) / 32;
    ++running.now;
    for (uint32_t b = first; b < first + count; ++b) {
        running.blocks[b].met = running.now;
        block_has_met(running.blocks[b]);
    }
    for (uint32_t w = first * warps; w < (first + count) * warps; ++w) {
        running.warps[w].met = running.now;
        if (checking) count_requests(running.warps[w]);
    }
    for (uint32_t t = first * threads; t < (first + count) * threads; ++t)
        if (&running.threads[t] != current) wake(running.threads[t]);
}

void check_place(const Barrier& barrier, Place place) {
    if (barrier.arrived && !same(barrier.place, place))
        fail("divergent barrier", "waits at " + describe(place) + " while others wait at " + describe(barrier.place));
}

}  // namespace

std::string describe(const Place& place) { return std::string(place.file_name()) + ":" + std::to_string(place.line()); }

std::string describe(const Thread& thread) {
    const std::string name = "thread " + index(thread.index) + " of block " + index(thread.block->index);
    switch (thread.wait) {
        case Wait::nothing: return name;
        case Wait::ended: return name + " has ended";
        default: return name + " waits at " + describe(thread.place);
    }
}

unsigned lane() { return current->lane; }
void wait_for_launch_before() { current->follows = true; }
unsigned char* dynamic_shared() { return current->block->shared; }

void* static_shared(size_t bytes, Place place) {
    static std::vector<Place> places;
    const auto known = std::find_if(places.begin(), places.end(), [&](const Place& p) { return same(p, place); });
    const size_t offset = (known - places.begin()) * kStaticPitch;
    if (known == places.end()) places.push_back(place);
    if (bytes > kStaticPitch || offset + bytes > kStaticBytes)
        fail("out of bounds", "no shared memory is left for the variable at " + describe(place));
    return current->block->shared + kStaticShared + offset;
}

unsigned cluster_rank() { return running.together ? 0 : current->block->rank; }
unsigned cluster_size() { return running.blocks_of_cluster; }

void* map_shared(void* address, unsigned rank) {
    const ptrdiff_t offset = static_cast<unsigned char*>(address) - current->block->shared;
    if (offset < 0 || size_t(offset) > running.config.dynamicSmemBytes)
        fail("out of bounds", "map_shared_rank of an address that is not in this block's shared memory");
    if (rank >= running.blocks_of_cluster)
        fail("out of bounds", "map_shared_rank of block " + std::to_string(rank) + " of a cluster of " +
                                  std::to_string(running.blocks_of_cluster));
    return (running.together ? *current->block : running.blocks[rank]).shared + offset;
}

void sync_warp(unsigned mask, Place place) {
    mask = existing(mask);
    if (!meet_in_warp(Wait::warp, mask, place)) return;
    // A part of a warp is not ordered by this: the checker knows whole warps only.
    if (mask == existing(~0u)) current->warp->met = ++running.now;
    wake_lanes(mask);
}

namespace {

// Of each lane of the mask: result(that lane's thread, what all passed), when all have come.
template <class Result> uint64_t exchange(unsigned mask, uint64_t bits, Place place, Result result) {
    current->bits = bits;
    if (meet_in_warp(Wait::shuffle, mask, place)) {
        uint64_t passed[32] = {};
        for_lanes(mask, [&](Thread& thread) { passed[thread.lane] = thread.bits; });
        for_lanes(mask, [&](Thread& thread) { thread.bits = result(thread, passed); });
        wake_lanes(mask);
    }
    return current->bits;
}

// Those of the mask's lanes that passed this.
unsigned lanes_with(unsigned mask, const uint64_t (&passed)[32], uint64_t bits) {
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < 32; ++lane) lanes |= unsigned(passed[lane] == bits) << lane;
    return lanes & mask;
}

}  // namespace

uint64_t shuffle(unsigned mask, uint64_t bits, unsigned source, Place place) {
    mask = existing(mask);
    current->source = source;
    return exchange(mask, bits, place, [&](const Thread& thread, const uint64_t (&passed)[32]) {
        if (!(mask >> thread.source & 1))
            fail("divergent barrier", "lane " + std::to_string(thread.lane) + " shuffles from lane " +
                                          std::to_string(thread.source) + ", which is not in the mask, at " +
                                          describe(place));
        return passed[thread.source];
    });
}

unsigned ballot(unsigned mask, bool vote, Place place) {
    mask = existing(mask);
    return exchange(mask, vote, place,
                    [&](const Thread&, const uint64_t (&passed)[32]) { return lanes_with(mask, passed, true); });
}

unsigned match_any(unsigned mask, uint64_t bits, Place place) {
    mask = existing(mask);
    return exchange(mask, bits, place, [&](const Thread& thread, const uint64_t (&passed)[32]) {
        return lanes_with(mask, passed, passed[thread.lane]);
    });
}

void sync_block(Place place) {
    Block& block = *current->block;
    current->polled = nullptr;
    check_place(block.barrier, place);
    block.barrier.place = place;
    if (++block.barrier.arrived < running.threads_of_block) return wait_for_others(Wait::block, place);
    block.barrier.arrived = 0;
    wake_blocks(block.rank, 1);
}

void sync_cluster(Place place) {
    if (running.together) return sync_block(place);
    check_place(running.barrier, place);
    running.barrier.place = place;
    if (++running.barrier.arrived < running.threads.size()) return wait_for_others(Wait::cluster, place);
    running.barrier.arrived = 0;
    wake_blocks(0, running.blocks_of_cluster);
    running.cluster_met = running.now;
}

}  // namespace emulation
