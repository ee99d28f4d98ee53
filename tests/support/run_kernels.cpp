// Runs the generic kernels on a fixed problem, forward and backward, without PyTorch, and writes all results to stdout.
//
//     run_kernels DTYPE CHANNELS_LAST PARTS        DTYPE as in enum Dtype, PARTS of each image
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "../../csrc/cpu/kernels.h"

using cbam::Dtype;
using cbam::Problem;

namespace {

struct Random {
    uint32_t state = 1;

    // In [-1, 1], as a multiple of 2^-15.
    double next() {
        state = state * 1664525 + 1013904223;
        return int32_t(state >> 16) / 32768.0 - 1;
    }
};

// A number of x's type; of the half types a random pattern of bits, between 2^-3 and 2 or so.
void put(Dtype dtype, void* at, int64_t i, Random& random) {
    const double value = random.next();
    const uint16_t bits = uint16_t((value + 1) * 32767), sign = bits & 1 ? 0x8000 : 0;
    if (dtype == Dtype::f64) ((double*)at)[i] = value;
    else if (dtype == Dtype::f32) ((float*)at)[i] = float(value);
    else if (dtype == Dtype::f16) ((uint16_t*)at)[i] = sign | (0x3000 + bits % 0x1000);
    else ((uint16_t*)at)[i] = sign | (0x3e00 + bits % 0x200);
}

struct Memory {
    std::vector<std::vector<double>> buffers;  // of double, so that each is aligned

    void* zeros(int64_t bytes) {
        buffers.emplace_back(bytes / sizeof(double) + 9);
        return (void*)((uintptr_t(buffers.back().data()) + 63) / 64 * 64);
    }
    void* random(Dtype dtype, int64_t count, Random& numbers) {
        void* at = zeros(count * cbam::size_of(dtype));
        for (int64_t i = 0; i < count; ++i) put(dtype, at, i, numbers);
        return at;
    }
};

void run(const Problem& p, const cbam::Steps& steps, int64_t parts, char* scratch, int64_t bytes) {
    for (const cbam::Step& step : steps)
        for (int64_t n = 0; n < p.N; ++n) {
            const int64_t of_step = step.work ? parts : 1;
            for (int64_t part = 0; part < of_step; ++part)
                step.run(p, {n, n + 1, part, of_step, scratch + n * bytes, bytes});
        }
}

void write(const void* at, int64_t bytes) { fwrite(at, 1, size_t(bytes), stdout); }

}  // namespace

int main(int, char** arguments) {
    Problem p = {};
    p.dtype = Dtype(atoi(arguments[1]));
    p.channels_last = atoi(arguments[2]);
    const int64_t parts = atoi(arguments[3]);
    p.N = 2, p.C = 37, p.H = 13, p.W = 11, p.R = 5, p.k = 7;
    p.relu = p.channel = p.spatial = true;
    p.saved_hidden = p.switches.terms() * p.R;

    Memory memory;
    Random numbers;
    const Dtype acc = p.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32;
    const int64_t size = cbam::size_of(p.dtype), sums = cbam::size_of(acc), elements = p.N * p.C * p.HW();
    p.x = memory.random(p.dtype, elements, numbers);
    p.residual = memory.random(p.dtype, elements, numbers);
    p.dy = memory.random(p.dtype, elements, numbers);
    p.w1 = memory.random(acc, p.R * p.C, numbers), p.b1 = memory.random(acc, p.R, numbers);
    p.w2 = memory.random(acc, p.C * p.R, numbers), p.b2 = memory.random(acc, p.C, numbers);
    p.ws = memory.random(acc, 2 * p.k * p.k, numbers), p.bs = memory.random(acc, 1, numbers);
    p.y = memory.zeros(elements * size), p.dx = memory.zeros(elements * size);
    p.dresidual = memory.zeros(elements * size);
    p.saved = memory.zeros(p.N * p.saved_size() * sums);
    p.index = (int32_t*)memory.zeros(p.N * (p.C + p.HW()) * sizeof(int32_t));
    p.partial = memory.zeros(p.N * p.partial_size() * sums);
    p.dw1 = memory.zeros(p.R * p.C * sums), p.db1 = memory.zeros(p.R * sums);
    p.dw2 = memory.zeros(p.C * p.R * sums), p.db2 = memory.zeros(p.C * sums);
    p.dws = memory.zeros(2 * p.k * p.k * sums), p.dbs = memory.zeros(sums);

    const cbam::Kernels& kernels = cbam::kernels_generic();
    const int64_t bytes = kernels.scratch_size(p);
    char* scratch = (char*)memory.zeros(p.N * bytes);
    run(p, kernels.forward(p), parts, scratch, bytes);
    run(p, kernels.backward(p), parts, scratch, bytes);
    kernels.backward_parameters(p, 0, p.R + p.C);

    write(p.y, elements * size), write(p.dx, elements * size), write(p.dresidual, elements * size);
    write(p.dw1, p.R * p.C * sums), write(p.db1, p.R * sums), write(p.dw2, p.C * p.R * sums);
    write(p.db2, p.C * sums), write(p.dws, 2 * p.k * p.k * sums), write(p.dbs, sums);
    return 0;
}
