// The order that counters make among the blocks of a launch. An addition tells what was ordered before the last fence
// of its thread; a load hears it, and the next fence makes it known: to the thread at once, to its block when that
// meets.
#include "counters.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "checker.h"

namespace emulation {

void wake(Thread&);
void wait_for_others(Wait, Place);

namespace {

struct Addition {
    unsigned value;  // of the counter behind it
    Mark mark;
    Clocks told;  // by this addition and by those before it
};

struct Counter {
    unsigned first;  // its value when the kernel began
    std::vector<Addition> additions;
    std::unordered_map<uint32_t, size_t> seen;  // by thread: how many additions it knows to have been made
    std::vector<Thread*> waiting;

    unsigned value_after(size_t count) const { return count ? additions[count - 1].value : first; }
};

std::map<uintptr_t, Counter> counters;  // of the running launch, by address

void join(Clocks& clocks, const Clocks& others) {
    clocks.resize(std::max(clocks.size(), others.size()));
    for (size_t i = 0; i < others.size(); ++i) clocks[i] = std::max(clocks[i], others[i]);
}

Counter& counter_at(const unsigned* address, bool write, const void* code) {
    if (!current) throw Error{"counter", "a counter is used outside kernels", code};
    if (!running.together)
        fail("counter", "the blocks of this launch are not alive together: there are more than 16, or clusters", code);
    if (checking) check_atomic({uintptr_t(address), sizeof *address, write, code});
    return counters.try_emplace(uintptr_t(address), Counter{*address, {}, {}, {}}).first->second;
}

// A load may not miss what is ordered before it.
size_t known_additions(const Counter& counter) {
    const auto known = [](const Addition& a) { return ordered_before_now(a.mark); };
    const auto last = std::find_if(counter.additions.rbegin(), counter.additions.rend(), known);
    return counter.additions.rend() - last;
}

}  // namespace

unsigned atomic_add(unsigned* address, unsigned value) {
    Counter& counter = counter_at(address, true, __builtin_return_address(0));
    const unsigned before = *address;
    *address += value;
    Clocks told = counter.additions.empty() ? Clocks() : counter.additions.back().told;
    join(told, current->told);
    counter.additions.push_back({*address, {current->id, running.now}, std::move(told)});
    counter.seen[current->id] = counter.additions.size();
    for (Thread* thread : std::exchange(counter.waiting, {})) wake(*thread);
    return before;
}

// As late as a GPU may be: a load finds what the thread knows of, and if it is repeated at once, one addition more.
// Where there is none the thread sleeps until there is.
unsigned relaxed_load(const unsigned* address, Place place) {
    Counter& counter = counter_at(address, false, current ? current->code = __builtin_return_address(0) : nullptr);
    size_t& seen = counter.seen[current->id];
    const bool again = std::exchange(current->polled, address) == address;
    while (again && seen == counter.additions.size()) {
        counter.waiting.push_back(current);
        wait_for_others(Wait::counter, place);
    }
    seen += again;
    if (checking) seen = std::max(seen, known_additions(counter));
    if (seen) join(current->heard, counter.additions[seen - 1].told);
    return counter.value_after(seen);
}

void fence() {
    current->polled = nullptr;
    if (!running.together) return;
    Block& block = *current->block;
    join(current->known, current->heard);
    current->heard.clear();
    join(block.learned, current->known);
    current->told = block.known;
    join(current->told, current->known);
    current->told.resize(running.blocks.size());
    current->told[block.rank] = block.met;
}

void block_has_met(Block& block) {
    join(block.known, block.learned);
    block.learned.clear();
}

bool has_unknown_addition(uintptr_t address, size_t bytes) {
    const auto first = counters.lower_bound(address & ~uintptr_t(3)), last = counters.lower_bound(address + bytes);
    return std::any_of(first, last, [](const auto& entry) {
        return std::any_of(entry.second.additions.begin(), entry.second.additions.end(),
                           [](const Addition& a) { return !ordered_before_now(a.mark); });
    });
}

void start_counters() { counters.clear(); }

std::vector<CounterValue> counter_values() {
    std::vector<CounterValue> values;
    for (const auto& [address, counter] : counters) {
        const Buffer& buffer = nearest_buffer(address);
        const size_t index = (address - uintptr_t(buffer.begin)) / sizeof(unsigned);
        values.push_back({buffer.name, index, counter.value_after(counter.additions.size())});
    }
    return values;
}

std::string describe_counter(const void* address) {
    const Buffer& buffer = nearest_buffer(uintptr_t(address));
    const Counter& counter = counters.at(uintptr_t(address));
    return "word " + std::to_string((uintptr_t(address) - uintptr_t(buffer.begin)) / sizeof(unsigned)) + " of " +
           buffer.name + ", which is " + std::to_string(counter.value_after(counter.additions.size()));
}

}  // namespace emulation
