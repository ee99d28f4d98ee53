// Bytes, 32-byte sectors and bank conflicts of the requests of warps. A request is what the lanes of a warp access by
// the same instruction for the same time since they last met.
#include <algorithm>
#include <bit>
#include <unordered_map>

#include "checker.h"

namespace emulation {

std::vector<LaunchTraffic> traffic;

namespace {

struct Request {
    const Buffer* buffer;  // null: shared memory
    bool write;
    uint32_t bytes, lanes;
    uintptr_t address[32];
};

// Of a warp, by instruction.
struct Pending {
    std::vector<Request> requests;
    uint32_t made[32] = {};  // by each lane
};

using Instructions = std::unordered_map<const void*, Pending>;
std::vector<Instructions> pending;  // by warp of the cluster

constexpr uint32_t kSector = 32, kBank = 4, kBanks = 32;

struct Addresses {
    uintptr_t values[32];
    uint32_t count = 0;
};

// What the lanes ask for, in units of so many bytes, without repetition.
Addresses distinct(const Request& request, uint32_t unit) {
    Addresses result;
    for (uint32_t lanes = request.lanes; lanes; lanes &= lanes - 1)
        result.values[result.count++] = request.address[std::countr_zero(lanes)] / unit;
    std::sort(result.values, result.values + result.count);
    result.count = std::unique(result.values, result.values + result.count) - result.values;
    return result;
}

BufferTraffic& of_buffer(const Buffer& buffer) {
    auto& all = traffic.back().buffers;
    const auto found = std::find_if(all.begin(), all.end(), [&](auto& t) { return t.name == buffer.name; });
    return found != all.end() ? *found : all.emplace_back(BufferTraffic{buffer.name});
}

void count_global(const Request& request) {
    BufferTraffic& t = of_buffer(*request.buffer);
    (request.write ? t.written : t.read) += distinct(request, request.bytes).count * uint64_t(request.bytes);
    t.sectors += distinct(request, kSector).count;
    ++t.requests;
}

// A request is served 128 bytes at a time: all lanes, or a half or quarter of them. Each bank gives one word a cycle.
void count_shared(const Request& request) {
    LaunchTraffic& t = traffic.back();
    ++t.shared_requests;
    const uint32_t words = std::max(request.bytes / kBank, 1u), lanes_at_a_time = std::max(32 / words, 1u);
    for (uint32_t first = 0; first < 32; first += lanes_at_a_time) {
        Request part = request;
        part.lanes &= uint32_t(((uint64_t(1) << lanes_at_a_time) - 1) << first);
        const Addresses elements = distinct(part, words * kBank);
        uint32_t cycles[kBanks] = {}, longest = 1;
        for (uint32_t i = 0; i < elements.count; ++i)
            for (uint32_t word = 0; word < words; ++word)
                longest = std::max(longest, ++cycles[(elements.values[i] * words + word) % kBanks]);
        t.bank_conflicts += longest - 1;
    }
}

uint64_t accessed_bytes(const Buffer& buffer) {
    const auto accessed = [](const Cell& c) { return std::max(c.written.time, c.read.time) >= running.started; };
    const size_t cells = std::count_if(buffer.cells.begin(), buffer.cells.end(), accessed);
    return std::min(buffer.bytes, kCell * cells);
}

}  // namespace

void count_access(const Access& access, const Buffer* buffer) {
    const size_t warp = current->warp - running.warps.data();
    Pending& p = pending[warp][access.code];
    const uint32_t i = p.made[current->lane]++;
    if (i == p.requests.size()) p.requests.push_back({buffer, access.write, uint32_t(access.bytes), 0, {}});
    p.requests[i].lanes |= 1u << current->lane;
    p.requests[i].address[current->lane] = access.address;
}

void count_requests(const Warp& warp) {
    for (auto& [code, p] : pending[&warp - running.warps.data()]) {
        for (const Request& request : p.requests) request.buffer ? count_global(request) : count_shared(request);
        p.requests.clear();
        std::fill_n(p.made, 32, 0);
    }
}

void start_counting() {
    traffic.push_back({running.kernel.code, running.config.dynamicSmemBytes, {}, 0, 0, {}});
    const uint32_t warps_of_block = (running.threads_of_block + 31) / 32;
    pending.assign(kClusterLimit * warps_of_block, {});
}

void finish_counting() {
    for (BufferTraffic& t : traffic.back().buffers)
        for (const Buffer& buffer : buffers)
            if (buffer.name == t.name) t.distinct = accessed_bytes(buffer);
    traffic.back().counters = counter_values();
}

}  // namespace emulation
