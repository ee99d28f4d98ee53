// From the arguments of an operator to the pointers of a Problem.
#pragma once

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <optional>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cpu/kernels.h"
#include "guards.h"

namespace {

using torch::headeronly::MemoryFormat;
using OptionalTensor = std::optional<Tensor>;

// The widest instruction set that this processor and ATEN_CPU_CAPABILITY (default, avx2, avx512) allow; avx512 leaves
// out the extension for bfloat16, which is used where nothing is said.
inline const cbam::Kernels& kernels() {
    static const cbam::Kernels& chosen = []() -> const cbam::Kernels& {
#if defined(__x86_64__)
        const char* limit = getenv("ATEN_CPU_CAPABILITY");
        const bool generic = limit && !strcmp(limit, "default");
        const bool avx2 = limit && !strcmp(limit, "avx2");
        const bool has_avx2 =
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        if (has_avx512 && !limit && __builtin_cpu_supports("avx512bf16")) return cbam::kernels_avx512bf16();
        if (has_avx512 && !generic && !avx2) return cbam::kernels_avx512();
        if (has_avx2 && !generic) return cbam::kernels_avx2();
#endif
        return cbam::kernels_generic();
    }();
    return chosen;
}

inline cbam::Dtype dtype_of(const Tensor& t) {
    switch (t.scalar_type()) {
        case ScalarType::Float: return cbam::Dtype::f32;
        case ScalarType::Double: return cbam::Dtype::f64;
        case ScalarType::Half: return cbam::Dtype::f16;
        case ScalarType::BFloat16: return cbam::Dtype::bf16;
        default: STD_TORCH_CHECK(false, "tensors must be float32, float64, float16 or bfloat16"); return {};
    }
}

inline ScalarType accumulation_type(const Tensor& x) {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The layout that serves x; cbam_fused/_ops.py has the same rule.
inline bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.stride(1) < x.stride(3); }

// t itself if it is dense in the layout asked for, else a copy that is.
inline Tensor dense(const Tensor& t, bool channels_last) {
    if (!channels_last) return t.is_contiguous() ? t : torch::stable::contiguous(t);
    int64_t expected = 1;
    for (int d : {1, 3, 2, 0}) {
        if (t.size(d) != 1 && t.stride(d) != expected) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
        expected *= t.size(d);
    }
    return t;
}

inline const void* pointer(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

struct Parameters {
    OptionalTensor w1, b1, w2, b2, ws, bs;
};

// Shapes, x and the parameters; the tensors are kept alive, dense, for as long as the call lasts.
struct Call {
    Tensor x;
    Parameters given, held;  // held: contiguous, in the accumulation type
    cbam::Problem p{};

    Call(const Tensor& x_, const Parameters& parameters)
        : x(dense(checked_image(x_), is_channels_last(x_))), given(parameters) {
        p.dtype = dtype_of(x);
        p.channels_last = is_channels_last(x_);
        p.N = x.size(0), p.C = x.size(1), p.H = x.size(2), p.W = x.size(3);
        STD_TORCH_CHECK(given.w1.has_value() == given.w2.has_value(), "w1 and w2 must be given together");
        p.R = given.w1 && given.w1->dim() > 0 ? given.w1->size(0) : 0;
        p.k = given.ws && given.ws->dim() == 4 ? given.ws->size(3) : 1;
        check_numel(given.w1, p.R * p.C, "w1"), check_numel(given.b1, p.R, "b1");
        check_numel(given.w2, p.C * p.R, "w2"), check_numel(given.b2, p.C, "b2");
        check_numel(given.ws, 2 * p.k * p.k, "ws"), check_numel(given.bs, 1, "bs");
        STD_TORCH_CHECK(p.k % 2 == 1, "ws must be (1, 2, k, k) with k odd");
        p.x = x.const_data_ptr();
        p.w1 = hold(given.w1, held.w1), p.b1 = hold(given.b1, held.b1);
        p.w2 = hold(given.w2, held.w2), p.b2 = hold(given.b2, held.b2);
        p.ws = hold(given.ws, held.ws), p.bs = hold(given.bs, held.bs);
    }

    // A tensor like x, dense in its layout.
    Tensor like_x(const Tensor& t) const { return dense(checked_like(x, t), p.channels_last); }
    OptionalTensor like_x(const OptionalTensor& t) const { return t ? OptionalTensor(like_x(*t)) : t; }

    // A contiguous tensor of this many sums.
    Tensor sums(const Tensor& t, int64_t numel) const {
        STD_TORCH_CHECK(t.numel() == numel && t.scalar_type() == accumulation_type(x),
                        "s, dg or dlogits does not fit x");
        return torch::stable::contiguous(t);
    }
    OptionalTensor sums(const OptionalTensor& t, int64_t numel) const {
        return t ? OptionalTensor(sums(*t, numel)) : t;
    }

    Tensor new_sums(torch::headeronly::IntHeaderOnlyArrayRef shape) const {
        return torch::stable::new_empty(x, shape, accumulation_type(x));
    }

    // Takes all images through these steps. With an image or more for each thread, a thread takes each of its images
    // through all steps, while it is in cache; with fewer, the threads do each step of all images together.
    void run(const cbam::Steps& steps) const { run(steps, new_workspace(0)); }
    void run(const cbam::Steps& steps, const Tensor& workspace) const {
        const int64_t bytes = kernels().scratch_size(p), group = kernels().group_size(p), threads = thread_count();
        char* scratch = aligned(workspace);
        auto parts_of = [&](const cbam::Step& step) { return parts(step.work); };
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

    // The scratch of all images that are worked on at a time, and behind it room for this many sums.
    Tensor new_workspace(int64_t sums) const {
        return torch::stable::new_empty(x, {scratch_bytes() + sums * int64_t(sizeof(double)) + 64}, ScalarType::Byte);
    }
    void* behind_scratch(const Tensor& workspace) const { return aligned(workspace) + scratch_bytes(); }

private:
    // What the use of a thread costs is worth it from about this many elements of x on, 128 KB of float32.
    static constexpr int64_t kWorkOfThread = 32768;

    int64_t thread_count() const { return std::min<int64_t>(torch::stable::get_num_threads(), p.N); }

    // Into how many parts a step of an image is split.
    int64_t parts(int64_t work) const {
        const int64_t threads = torch::stable::get_num_threads() / std::max<int64_t>(p.N, 1);
        return std::max<int64_t>(std::min(work / kWorkOfThread, threads), 1);
    }

    int64_t scratch_bytes() const { return thread_count() * kernels().group_size(p) * kernels().scratch_size(p); }

    static char* aligned(const Tensor& workspace) {
        return (char*)(((uintptr_t)workspace.mutable_data_ptr() + 63) & ~uintptr_t(63));
    }

    const void* hold(const OptionalTensor& given, OptionalTensor& held) const {
        if (!given) return nullptr;
        held = given;
        if (!given->is_contiguous() || given->scalar_type() != accumulation_type(x)) {
            held = new_sums(given->sizes());
            torch::stable::copy_(*held, *given);
        }
        return held->const_data_ptr();
    }
};

}  // namespace
