// The schemas of the operators, and their CPU implementation.
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../cpu/kernels.h"
#include "operators.h"

namespace {

#if defined(__x86_64__)
// clang's __builtin_cpu_supports does not have it. AVX2 implies that the system saves the registers.
[[maybe_unused]] bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#define CBAM_KERNELS_OF(isa) cbam::kernels_##isa

// The widest instruction set that this processor and ATEN_CPU_CAPABILITY (default, avx2, avx512) allow; avx512 excludes
// the bfloat16 extension, which is used if the variable is not set.
const cbam::Kernels& kernels() {
    static const cbam::Kernels& chosen = []() -> const cbam::Kernels& {
#if defined(CBAM_NATIVE)  // built for this machine only
        return CBAM_EXPANDED(CBAM_KERNELS_OF, CBAM_NATIVE)();
#else
#if defined(__x86_64__)
        const char* limit = getenv("ATEN_CPU_CAPABILITY");
        const bool generic = limit && !strcmp(limit, "default");
        const bool avx2 = limit && !strcmp(limit, "avx2");
        const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
        const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (has_avx512 && !limit && __builtin_cpu_supports("avx512bf16")) return cbam::kernels_avx512bf16();
        if (has_avx512 && !generic && !avx2) return cbam::kernels_avx512();
        if (has_avx2 && !generic) return cbam::kernels_avx2();
#endif
        return cbam::kernels_generic();
#endif
    }();
    return chosen;
}

std::string cpu_capability() { return kernels().name; }

class Cpu {
public:
    explicit Cpu(const Tensor&) {}

    void forward(const Call& call) const { run(call, kernels().forward(call.p), new_workspace(call, 0)); }
    void apply_gates(const Call& call) const { run(call, kernels().apply_gates(call.p), new_workspace(call, 0)); }
    void gate_grads(const Call& call) const { run(call, kernels().gate_grads(call.p), new_workspace(call, 0)); }

    // The gradients per image, and their sums.
    void backward(Call& call) const {
        cbam::Problem& p = call.p;
        const Tensor workspace = new_workspace(call, p.N * p.partial_size());
        p.partial = aligned(workspace) + scratch_bytes(p);
        run(call, kernels().backward(p), workspace);
        const int64_t rows_a_thread = 1 + 65536 / (p.C * std::max<int64_t>(p.N, 1));
        torch::stable::parallel_for(0, p.R + p.C, rows_a_thread, [&](int64_t first, int64_t last) {
            kernels().backward_parameters(p, first, last);
        });
    }

private:
    // The fewest elements of x that pay for a thread, 128 KB of float32.
    static constexpr int64_t kWorkOfThread = 32768;

    // Takes all images through these steps. With at least one image per thread, a thread takes each of its images
    // through all steps, while it is in the cache; with fewer, the threads share each step of all images.
    static void run(const Call& call, const cbam::Steps& steps, const Tensor& workspace) {
        const cbam::Problem& p = call.p;
        const int64_t bytes = kernels().scratch_size(p), group = kernels().group_size(p), threads = thread_count(p);
        char* scratch = aligned(workspace);
        auto parts_of = [&](const cbam::Step& step) { return parts(p, step.work); };
        if (std::any_of(steps.begin(), steps.end(), [&](const cbam::Step& step) { return parts_of(step) > 1; })) {
            for (const cbam::Step& step : steps) {
                const int64_t parts = parts_of(step);
                torch::stable::parallel_for(0, p.N * parts, 1, [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; ++i) {
                        const int64_t n = i / parts;
                        step.run(p, {n, n + 1, i % parts, parts, scratch + n * bytes, bytes});
                    }
                });
            }
            return;
        }
        torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
            for (int64_t t = first; t < last; ++t) {
                const int64_t end = p.N * (t + 1) / threads;
                for (int64_t n = p.N * t / threads; n < end; n += group)
                    for (const cbam::Step& step : steps)
                        step.run(p, {n, std::min(n + group, end), 0, 1, scratch + t * group * bytes, bytes});
            }
        });
    }

    // The scratch of all images in work, followed by space for this many sums.
    static Tensor new_workspace(const Call& call, int64_t sums) {
        return call.new_bytes(scratch_bytes(call.p) + sums * int64_t(sizeof(double)) + 64);
    }

    static int64_t thread_count(const cbam::Problem& p) {
        return std::min<int64_t>(torch::stable::get_num_threads(), p.N);
    }

    // The number of parts of an image's step.
    static int64_t parts(const cbam::Problem& p, int64_t work) {
        const int64_t threads = torch::stable::get_num_threads() / std::max<int64_t>(p.N, 1);
        return std::max<int64_t>(std::min(work / kWorkOfThread, threads), 1);
    }

    static int64_t scratch_bytes(const cbam::Problem& p) {
        return thread_count(p) * kernels().group_size(p) * kernels().scratch_size(p);
    }

    static char* aligned(const Tensor& workspace) {
        return (char*)(((uintptr_t)workspace.mutable_data_ptr() + 63) & ~uintptr_t(63));
    }
};

}  // namespace

#define CBAM_PARAMETERS "Tensor? w1, Tensor? w2, Tensor? ws, Tensor? b1, Tensor? b2, Tensor? bs"

CBAM_EXPANDED(STABLE_TORCH_LIBRARY, TORCH_EXTENSION_NAME, m) {
    m.def("forward(Tensor x, " CBAM_PARAMETERS
          ", Tensor? residual, bool relu, int switches) -> (Tensor, Tensor, Tensor)");
    m.def("backward(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor index, " CBAM_PARAMETERS
          ", int switches) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("gates_forward(Tensor x, " CBAM_PARAMETERS ", int switches) -> (Tensor, Tensor)");
    m.def("apply_gates(Tensor x, Tensor saved, Tensor s, Tensor? residual, bool relu, int switches) -> Tensor");
    m.def(
        "gate_grads(Tensor dy, Tensor x, Tensor? y, Tensor saved, Tensor s, int switches) -> (Tensor, Tensor, Tensor)");
    m.def(
        "backward_from_gate_grads(Tensor? dy, Tensor? s, Tensor? dg, Tensor? dlogits, Tensor x, Tensor saved, Tensor "
        "index, " CBAM_PARAMETERS ", int switches) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def("cpu_capability() -> str");
}

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CPU, m) { Operators<Cpu>::implement(m); }

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
