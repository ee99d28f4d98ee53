// The main loop: takes all images through the steps of an operator, on several threads. Torch-free.
#pragma once

#include <stdint.h>

#include <algorithm>

#include "kernels.h"

namespace cbam {

// The fewest elements of x that pay for a thread, 128 KB of float32.
constexpr int64_t kWorkOfThread = 32768;

// parallel_for(begin, end, grain, function(first, last)), as at::parallel_for, with this many threads.
template <class ParallelFor> class MainLoop {
public:
    MainLoop(const Kernels& kernels, const Problem& p, int64_t threads, ParallelFor parallel_for)
        : p(p),
          available(threads),
          threads(std::min(threads, p.N)),
          group(kernels.group_size(p)),
          image_bytes(kernels.scratch_size(p)),
          parallel_for(parallel_for) {}

    int64_t scratch_bytes() const { return threads * group * image_bytes; }

    // With at least one image per thread, a thread takes each of its images through all steps, while it is in the
    // cache; with fewer, the threads share each step of all images.
    void run(const Steps& steps, char* scratch) const {
        const bool shared = std::any_of(steps.begin(), steps.end(), [&](const Step& step) { return parts(step) > 1; });
        if (shared) share_steps(steps, scratch);
        else share_images(steps, scratch);
    }

private:
    const Problem& p;
    const int64_t available, threads, group, image_bytes;
    const ParallelFor parallel_for;

    // The number of parts of an image's step.
    int64_t parts(const Step& step) const {
        return std::max<int64_t>(std::min(step.work / kWorkOfThread, available / std::max<int64_t>(p.N, 1)), 1);
    }

    void share_steps(const Steps& steps, char* scratch) const {
        for (const Step& step : steps) {
            const int64_t of_image = parts(step);
            parallel_for(0, p.N * of_image, 1, [&](int64_t first, int64_t last) {
                for (int64_t i = first; i < last; ++i) {
                    const int64_t n = i / of_image;
                    step.run(p, {n, n + 1, i % of_image, of_image, scratch + n * image_bytes, image_bytes});
                }
            });
        }
    }

    void share_images(const Steps& steps, char* scratch) const {
        parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
            for (int64_t t = first; t < last; ++t) {
                const int64_t end = p.N * (t + 1) / threads;
                for (int64_t n = p.N * t / threads; n < end; n += group)
                    for (const Step& step : steps)
                        step.run(p,
                                 {n, std::min(n + group, end), 0, 1, scratch + t * group * image_bytes, image_bytes});
            }
        });
    }
};

}  // namespace cbam
