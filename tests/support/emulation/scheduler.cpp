// Runs the blocks of a launch, one cluster after another, each thread on a stack of its own.
#include "scheduler.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <random>

#include "checker.h"
#include "context.h"
#include "counters.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {

Launch running;
Thread* current = nullptr;
uint64_t seed = 0;
uint32_t resident = 0;

namespace {

void* scheduler_stack;
std::optional<Error> error;
std::deque<Thread*> ready;
std::deque<Block*> not_started;
std::mt19937_64 random_bits;
constexpr uint64_t kCanary = 0x656d756c6174696f;

void* reserve(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    return p;
}

char* stack_of(size_t i) {
    static char* const stacks = static_cast<char*>(reserve(kStack * kClusterLimit * 1024));
    return stacks + i * kStack;
}

void switch_to_scheduler() { emulation_switch(&current->stack_pointer, scheduler_stack); }

void thread_main() {
    running.kernel.call(running.kernel.arguments);
    // The launch after this one would not wait for the one before.
    if (checking && running.early && !current->follows)
        fail("race", "a thread ends and has not waited for the launch before this one");
    current->wait = Wait::ended;
    ++current->block->ended;
    switch_to_scheduler();
}

template <class Order> void shuffle_order(Order& order) {
    if (seed) std::shuffle(order.begin(), order.end(), random_bits);
}

Thread* next_ready() {
    if (seed) std::swap(ready.front(), ready[random_bits() % ready.size()]);
    Thread* thread = ready.front();
    ready.pop_front();
    return thread;
}

void start_block() {
    for (Thread& thread : running.threads)
        if (thread.block == not_started.front()) ready.push_back(&thread);
    not_started.pop_front();
}

uint3 index_in(const dim3& extent, uint64_t i) {
    return {unsigned(i % extent.x), unsigned(i / extent.x % extent.y), unsigned(i / extent.x / extent.y)};
}

// Of blocks that are merely together, only so many at a time.
void start_threads() {
    not_started.clear();
    if (running.together && resident && resident < running.blocks.size()) {
        for (Block& block : running.blocks) not_started.push_back(&block);
        shuffle_order(not_started);
        for (uint32_t i = 0; i < resident; ++i) start_block();
        return;
    }
    std::vector<Thread*> order;
    for (Thread& thread : running.threads) order.push_back(&thread);
    shuffle_order(order);
    ready.assign(order.begin(), order.end());
}

// Blocks of a cluster differ in x.
void start_cluster(uint64_t cluster, uint32_t blocks) {
    const uint32_t threads = running.threads_of_block;
    const uint32_t warps = (threads + 31) / 32;
    running.blocks.assign(blocks, {});
    running.warps.assign(blocks * warps, {});
    running.threads.assign(blocks * threads, {});
    running.barrier = {};
    running.cluster_started = running.cluster_met = ++running.now;
    for (uint32_t b = 0; b < blocks; ++b) {
        Block& block = running.blocks[b];
        block = {index_in(running.config.gridDim, cluster * blocks + b),
                 b,
                 0,
                 {},
                 running.now,
                 shared_memory + b * kSharedPitch,
                 {},
                 {}};
        ASAN_UNPOISON_MEMORY_REGION(block.shared, kSharedPitch);
        std::fill_n(block.shared, running.config.dynamicSmemBytes, 0xff);
        std::fill_n(block.shared + kStaticShared, kStaticBytes, 0xff);
        ASAN_POISON_MEMORY_REGION(block.shared + running.config.dynamicSmemBytes,
                                  kStaticShared - running.config.dynamicSmemBytes);
        ASAN_POISON_MEMORY_REGION(block.shared + kStaticShared + kStaticBytes,
                                  kSharedPitch - kStaticShared - kStaticBytes);
        for (uint32_t t = 0; t < threads; ++t) {
            const uint32_t i = b * threads + t;
            Warp& warp = running.warps[b * warps + t / 32];
            if (t % 32 == 0) warp = {i, std::min(32u, threads - t), running.now, {}};
            char* stack = stack_of(i);
            // What the last thread had on it.
            ASAN_UNPOISON_MEMORY_REGION(stack, kStack);
            *reinterpret_cast<uint64_t*>(stack) = kCanary;
            running.threads[i] = {new_context(stack + kStack, thread_main),
                                  stack,
                                  &block,
                                  &warp,
                                  uint32_t(cluster * blocks * threads + i + 1),
                                  t % 32,
                                  index_in(running.config.blockDim, t)};
        }
    }
    start_threads();
}

// No thread can go on, and some wait: at barriers of which others of their block or cluster know nothing, or for
// counters to which nobody adds.
void report_deadlock() {
    const auto begin = running.threads.begin(), end = running.threads.end();
    const auto at_counter = [](const Thread& t) { return t.wait == Wait::counter; };
    const auto waits = [&](const Thread& t) {
        if (t.wait == Wait::nothing || t.wait == Wait::ended) return false;
        return !running.together ||
               std::none_of(begin, end, [&](const Thread& u) { return at_counter(u) && u.block == t.block; });
    };
    const auto found = std::find_if(begin, end, waits);
    if (found == end) {
        const Thread& thread = *std::find_if(begin, end, at_counter);
        error = {"deadlock", describe(thread) + " for " + describe_counter(thread.polled), thread.code};
        return;
    }
    const Thread& waiting = *found;
    const auto absent = [&](const Thread& t) {
        if (t.wait == waiting.wait && describe(t.place) == describe(waiting.place)) return false;
        if (waiting.wait == Wait::warp || waiting.wait == Wait::shuffle) return t.warp == waiting.warp;
        return waiting.wait == Wait::cluster || t.block == waiting.block;
    };
    const auto other = std::find_if(running.threads.begin(), running.threads.end(), absent);
    error = {"divergent barrier",
             describe(waiting) +
                 (other == running.threads.end() ? "; lanes of its mask do not exist" : "; " + describe(*other)),
             nullptr};
}

void run_cluster(uint64_t cluster, uint32_t blocks) {
    start_cluster(cluster, blocks);
    uint32_t ended = 0;
    while (!ready.empty() && !error) {
        current = next_ready();
        threadIdx = current->index, blockIdx = current->block->index;
        emulation_switch(&scheduler_stack, current->stack_pointer);
        ended += current->wait == Wait::ended;
        if (current->block->ended == running.threads_of_block && !not_started.empty()) start_block();
        if (*reinterpret_cast<uint64_t*>(current->stack) != kCanary)
            error = {"stack", "a thread's stack overflowed", 0};
        current = nullptr;
    }
    if (error) return;
    if (ended < running.threads.size()) return report_deadlock();
    if (!checking) return;
    for (const Warp& warp : running.warps) count_requests(warp);
    check_end_of_cluster();
}

}  // namespace

unsigned char* const shared_memory = static_cast<unsigned char*>(reserve(kSharedPitch * kClusterLimit));

void wake(Thread& thread) {
    thread.wait = Wait::nothing;
    ready.push_back(&thread);
}

void wait_for_others(Wait wait, Place place) {
    current->wait = wait;
    current->place = place;
    switch_to_scheduler();
}

void fail(std::string kind, std::string message, const void* code) {
    if (!current) throw Error{kind, message, code};
    error = {kind, message + " (" + describe(*current) + ")", code};
    switch_to_scheduler();
    __builtin_unreachable();
}

void run_clusters(uint64_t count, uint32_t blocks) {
    error.reset();
    random_bits.seed(seed);
    running.started = ++running.now;
    blockDim = running.config.blockDim, gridDim = running.config.gridDim;
    start_counters();
    if (checking) start_counting();
    std::vector<uint64_t> order(count);
    for (uint64_t i = 0; i < count; ++i) order[i] = i;
    shuffle_order(order);
    for (uint64_t i = 0; i < count && !error; ++i) run_cluster(order[i], blocks);
    ready.clear();
    if (error) throw *error;
    if (checking) finish_counting();
}

}  // namespace emulation
