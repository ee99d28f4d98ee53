// Times every pass of the CPU kernels by itself, on one thread, beside a copy of x: the figures of docs/design/cpu.md.
//   g++ -std=c++20 -O3 -fno-math-errno -fno-trapping-math -Wno-psabi -march=native -mprefer-vector-width=512
//       bench/passes.cpp -o passes && ./passes          (add bf16 for bfloat16)
// Microseconds for the whole batch, the best of many runs; ReLU'd data, buffers aligned as PyTorch's are.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "../csrc/cpu/backward.h"
#include "../csrc/cpu/forward.h"

namespace {

template <class T> T* allocate(int64_t n) {
    void* p = aligned_alloc(64, (n * int64_t(sizeof(T)) + 127) / 64 * 64);
    memset(p, 0, n * sizeof(T));
    return (T*)p;
}

template <class Run> double best(Run run) {
    using Clock = std::chrono::steady_clock;
    double least = 1e30, total = 0;
    for (int n = 0; (total < 0.2 || n < 5) && n < 400; ++n) {
        const auto start = Clock::now();
        run();
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        least = std::min(least, seconds);
        total += seconds;
    }
    return least * 1e6;
}

template <class T, bool channels_last> void time_passes(int64_t N, int64_t C, int64_t side) {
    using F = Acc<T>;
    const int64_t HW = side * side, image = C * HW, n = N * image, R = std::max<int64_t>(1, C / 16);
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    T *x = allocate<T>(n), *dy = allocate<T>(n), *y = allocate<T>(n);
    for (int64_t i = 0; i < n; ++i) {
        store(x + i, broadcast<Vec<F>>(std::max(F(0), F(normal(random)))), First{1});
        store(dy + i, broadcast<Vec<F>>(F(normal(random))), First{1});
    }
    cbam::Problem p{};
    p.channels_last = channels_last;
    p.N = N, p.C = C, p.H = p.W = side, p.R = R, p.k = 7;
    p.channel = p.spatial = true, p.saved_hidden = 2 * R;
    F *w1 = allocate<F>(R * C), *w2 = allocate<F>(R * C), *ws = allocate<F>(98);
    for (int64_t i = 0; i < R * C; ++i) w1[i] = normal(random) / F(C), w2[i] = normal(random) / F(R);
    for (int i = 0; i < 98; ++i) ws[i] = normal(random) / 7;
    p.x = x, p.dy = dy, p.y = p.dx = y, p.w1 = w1, p.w2 = w2, p.ws = ws;
    p.saved = allocate<F>(N * p.saved_size()), p.partial = allocate<F>(N * p.partial_size());
    p.index = allocate<int32_t>(N * (C + HW));
    const int64_t scratch_size = Scratch<F>(p, nullptr).bytes;
    char* base = allocate<char>(scratch_size);
    const Scratch<F> scratch(p, base);
    auto share = [&](int64_t i) { return Share{i, i + 1, 0, 1, base, scratch_size}; };
    for (int64_t i = 0; i < N; ++i)
        for (const cbam::Step& step : forward_steps<T, channels_last>(p)) step.run(p, share(i));

    auto each = [&](auto run) {
        return best([&] {
            for (int64_t i = 0; i < N; ++i) run(Saved<F>(p, i), x + i * image, dy + i * image, y + i * image, i);
        });
    };
    const int64_t rows = channels_last ? HW : C, cols = channels_last ? C : HW;
    F *t = scratch.t, *routed = scratch.routed, *da = scratch.da, *dm = scratch.dm;
    const Range map{0, side};
    const double pixels =
        each([&](Saved<F>, const T*, const T*, T*, int64_t i) { pool_pixels<T, channels_last>(p, share(i)); });
    const double channels =
        each([&](Saved<F>, const T*, const T*, T*, int64_t i) { pool_channels<T, channels_last>(p, share(i)); });
    const double conv = each([&](Saved<F> v, auto...) {
        spatial_logits(p, map, v, scratch);
        gate(p.switches.hard_spatial, v.s, HW);
    });
    const double apply = each([&](Saved<F>, const T*, const T*, T*, int64_t i) {
        apply_gates<T, channels_last>(p, i, {0, HW}, Gates(p, i, scratch));
    });
    const double sums =
        each([&](Saved<F>, const T*, const T*, T*, int64_t i) { gate_products<T, channels_last>(p, share(i)); });
    const double conv_backward = each([&](Saved<F>, const T*, const T*, T*, int64_t i) {
        logit_gradient<F>(p, share(i));
        maps_backward<F>(p, share(i));
    });
    const double dots =
        each([&](Saved<F>, const T*, const T*, T*, int64_t i) { through_mean<T, channels_last>(p, share(i)); });
    const double dx = each([&](Saved<F> v, const T*, const T* dy, T* dx, int64_t) {
        if (channels_last)
            input_gradient<T, true, true, true>(dy, {0, rows}, cols, v.s, t, v.g, da, v.argmax_hw, dm, v.argmax_c,
                                                routed, dx);
        else
            input_gradient<T, false, true, true>(dy, {0, rows}, cols, v.s, t, v.g, da, v.argmax_c, routed, v.argmax_hw,
                                                 dm, dx);
    });
    const double copy = best([&] { memcpy(y, x, n * sizeof(T)); });
    printf("%3ldx%ldx%ldx%ld %s\t%7.0f %8.0f %6.0f %6.0f %6.0f %9.0f %6.0f %6.0f %6.0f\n", long(N), long(C), long(side),
           long(side), channels_last ? "nhwc" : "nchw", pixels, channels, conv, apply, sums, conv_backward, dots, dx,
           copy);
    for (void* b : {(void*)x, (void*)dy, (void*)y}) free(b);
}

template <class T> void time_all() {
    printf("map\t\t\t pixels channels   conv      y   D, B  backward   dA x     dx   copy\n");
    const int64_t maps[][3] = {{16, 64, 56}, {16, 128, 28}, {16, 256, 14}, {16, 512, 7}, {8, 256, 56}, {32, 64, 112}};
    for (const auto& m : maps) {
        time_passes<T, false>(m[0], m[1], m[2]);
        time_passes<T, true>(m[0], m[1], m[2]);
    }
}

}  // namespace

int main(int argc, char** argv) { argc > 1 && !strcmp(argv[1], "bf16") ? time_all<bf16>() : time_all<float>(); }
