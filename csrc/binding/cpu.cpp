// The operators on the CPU, their registration and that of all schemas.
#include <string>

#include "../cpu/isa/choice.h"
#include "../cpu/run.h"
#include "operators.h"
#include "schemas.h"

namespace {

const cbam::Kernels& kernels() {
    static const cbam::Kernels& chosen = cbam::choose_kernels();
    return chosen;
}

std::string cpu_capability() { return kernels().name; }

auto main_loop(const cbam::Problem& p) {
    const auto parallel_for = [](int64_t begin, int64_t end, int64_t grain, const auto& function) {
        torch::stable::parallel_for(begin, end, grain, function);
    };
    return cbam::MainLoop(kernels(), p, torch::stable::get_num_threads(), parallel_for);
}

class Cpu {
public:
    explicit Cpu(const Tensor&) {}

    void forward(const Call& call) const { run(call, kernels().forward(call.p)); }
    void apply_gates(const Call& call) const { run(call, kernels().apply_gates(call.p)); }
    void gate_grads(const Call& call) const { run(call, kernels().gate_grads(call.p)); }

    // The gradients per image, and their sums.
    void backward(Call& call) const {
        cbam::Problem& p = call.p;
        const auto loop = main_loop(p);
        const int64_t sums = p.N * p.partial_size() * int64_t(sizeof(double));
        const Tensor workspace = new_workspace(call, loop.scratch_bytes() + sums);
        p.partial = aligned(workspace) + loop.scratch_bytes();
        loop.run(kernels().backward(p), aligned(workspace));
        const int64_t rows_a_thread = 1 + 65536 / (p.C * std::max<int64_t>(p.N, 1));
        torch::stable::parallel_for(0, p.R + p.C, rows_a_thread, [&](int64_t first, int64_t last) {
            kernels().backward_parameters(p, first, last);
        });
    }

private:
    static void run(const Call& call, const cbam::Steps& steps) {
        const auto loop = main_loop(call.p);
        const Tensor workspace = new_workspace(call, loop.scratch_bytes());
        loop.run(steps, aligned(workspace));
    }

    static Tensor new_workspace(const Call& call, int64_t bytes) { return call.new_bytes(bytes + 64); }

    static char* aligned(const Tensor& workspace) {
        return (char*)(((uintptr_t)workspace.mutable_data_ptr() + 63) & ~uintptr_t(63));
    }
};

}  // namespace

CBAM_EXPANDED(STABLE_TORCH_LIBRARY, TORCH_EXTENSION_NAME, m) { define(m); }

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CPU, m) { Operators<Cpu>::implement(m); }

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
