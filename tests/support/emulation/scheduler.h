// The running launch, as the checker sees it: every CUDA thread is a fiber, and control passes from one to another only
// where threads wait for each other.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

namespace emulation {

// Counts launches, clusters and barriers. What a thread did at time t is ordered before what another does now if the
// smallest group that holds both (warp, block, cluster; of two clusters the launch) has met after t, or if a counter
// has told the block of the other of it.
using Time = uint32_t;

enum class Wait : uint8_t { nothing, warp, shuffle, block, cluster, counter, ended };

// What is known of the blocks of a launch: of block i what it did before clocks[i]. Empty: nothing.
using Clocks = std::vector<Time>;

struct Warp;
struct Block;

struct Thread {
    void* stack_pointer;
    char* stack;  // the lowest address
    Block* block;
    Warp* warp;
    uint32_t id;  // in the grid, from 1
    uint32_t lane;
    uint3 index;
    Wait wait;
    Place place;  // where it waits
    uint64_t bits;
    uint32_t source;     // of a shuffle: the lane whose bits become those of this thread
    const void* polled;  // the counter that it has loaded last, with no fence and no barrier behind it
    const void* code;    // behind that load
    Clocks heard;        // from counters since its last fence
    Clocks known;        // from counters before its last fence
    Clocks told;         // to counters: what was ordered before its last fence
    bool follows;        // has waited for the launch before this one
};

// Lanes that wait at one place for the same lanes.
struct Meeting {
    Wait wait;
    unsigned mask, arrived;
    Place place;
};

struct Warp {
    uint32_t first;  // thread of the cluster
    uint32_t lanes;
    Time met;
    std::vector<Meeting> meetings;
};

struct Barrier {
    uint32_t arrived;
    Place place;
};

struct Block {
    uint3 index;
    uint32_t rank;   // in the cluster
    uint32_t ended;  // threads
    Barrier barrier;
    Time met;
    unsigned char* shared;
    Clocks known;    // by all of its threads
    Clocks learned;  // by some thread, for all of them when they meet
};

struct Launch {
    cudaLaunchConfig_t config;
    Kernel kernel;
    uint32_t blocks_of_cluster, threads_of_block;
    bool early;     // it may have begun before the launch ahead of it was over
    bool together;  // all blocks are alive at a time, as one cluster would be
    Time started, cluster_started, now;
    std::vector<Thread> threads;  // of the running cluster
    std::vector<Warp> warps;
    std::vector<Block> blocks;
    Barrier barrier;  // of the cluster
    Time cluster_met;
};

struct Error {
    std::string kind, message;
    const void* code;  // the machine instruction, or null
};

extern Launch running;
extern Thread* current;  // null outside kernels
extern uint64_t seed;
extern int ptx_version;  // that the kernels were made of, as cudaFuncGetAttributes has it
extern uint32_t
    resident;  // of the blocks that are alive together, those that have started and not ended; 0: any number

constexpr size_t kStack = 64 << 10;
constexpr size_t kShared = 227 << 10;  // what a block may have
// From the shared memory of one block to that of the next in the cluster, so that what lies behind it is no memory.
constexpr size_t kSharedPitch = 256 << 10;
constexpr size_t kStaticShared = 252 << 10;  // where the variables begin that are no part of dynamic shared memory
constexpr size_t kStaticBytes = 256;
constexpr uint32_t kClusterLimit = 16;
extern unsigned char* const shared_memory;

// Ends the launch with this error; called by a thread, it does not return.
[[noreturn]] void fail(std::string kind, std::string message, const void* code = nullptr);
std::string describe(const Thread&);
std::string describe(const Place&);

}  // namespace emulation
