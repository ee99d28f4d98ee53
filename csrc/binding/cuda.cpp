// The CUDA implementation of the operators; csrc/binding/cpu.cpp has the schemas. The workspace, stream and device are
// PyTorch's current ones, and nothing waits for the GPU.
#include <stdlib.h>

#include <map>
#include <mutex>
#include <string>

#include <torch/csrc/stable/accelerator.h>

#include "../cuda/launch.h"
#include "operators.h"

namespace {

using cbam::Problem;
using cbam::cuda::Plan;

void check(cudaError_t error, const char* what) {
    STD_TORCH_CHECK(error == cudaSuccess, "cbam_fused: ", what, " failed: ", cudaGetErrorString(error));
}

int attribute(int device, cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
    return value;
}

// Of the current device.
cbam::cuda::Device facts(int device) {
    cbam::cuda::Device d{};
    d.multiprocessors = attribute(device, cudaDevAttrMultiProcessorCount);
    d.l2_bytes = attribute(device, cudaDevAttrL2CacheSize);
    d.shared_per_block = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    d.clusters = attribute(device, cudaDevAttrClusterLaunch) && cbam::cuda::has_clusters();
    return d;
}

// Sets the current device of our copy of the runtime; the guard sets PyTorch's.
const cbam::cuda::Device& enter(int device) {
    static std::mutex mutex;
    static std::map<int, cbam::cuda::Device> known;
    check(cudaSetDevice(device), "cudaSetDevice");
    const std::lock_guard lock(mutex);
    const auto found = known.find(device);
    return found != known.end() ? found->second : known.emplace(device, facts(device)).first->second;
}

cudaStream_t current_stream(int device) {
    void* stream = nullptr;
    const AOTITorchError error = aoti_torch_get_current_cuda_stream(device, &stream);
    STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "cbam_fused: PyTorch does not tell its current CUDA stream");
    return static_cast<cudaStream_t>(stream);
}

class Cuda {
public:
    explicit Cuda(const Tensor& x)
        : index_(gpu_of(x)), guard_(index_), device_(enter(index_)), stream_(current_stream(index_)) {}

    void forward(const Call& call) const {
        const Plan plan = planned(cbam::cuda::plan_forward, call.p);
        const Tensor workspace = call.new_bytes(cbam::cuda::forward_workspace(call.p, plan));
        check(cbam::cuda::forward(call.p, plan, workspace.mutable_data_ptr(), stream_), "forward");
    }

    void apply_gates(const Call& call) const { check(cbam::cuda::apply_gates(call.p, stream_), "apply_gates"); }

    void gate_grads(const Call& call) const {
        const Plan plan = planned(cbam::cuda::plan_backward, call.p);
        const Tensor workspace = call.new_bytes(cbam::cuda::gate_grads_workspace(call.p, plan));
        check(cbam::cuda::gate_grads(call.p, plan, workspace.mutable_data_ptr(), stream_), "gate_grads");
    }

    void backward(Call& call) const {
        Problem& p = call.p;
        const Plan plan = planned(cbam::cuda::plan_backward, p);
        const int64_t own = cbam::cuda::backward_workspace(p, plan), size = p.dtype == cbam::Dtype::f64 ? 8 : 4;
        const Tensor workspace = call.new_bytes(own + p.N * p.partial_size() * size);
        p.partial = (char*)workspace.mutable_data_ptr() + own;
        check(cbam::cuda::backward(p, plan, workspace.mutable_data_ptr(), stream_), "backward");
    }

private:
    // The dispatcher chose CUDA, so some argument is a CUDA tensor.
    static int gpu_of(const Tensor& x) {
        STD_TORCH_CHECK(!x.is_cpu(), "x must be on the GPU that other tensors are on");
        return x.get_device_index();
    }

    template <class Choose> Plan planned(Choose choose, const Problem& p) const {
        return choose(p, device_, getenv("CBAM_FUSED_CUDA_SCHEDULE"));
    }

    int index_;
    torch::stable::accelerator::DeviceGuard guard_;
    const cbam::cuda::Device& device_;
    cudaStream_t stream_;
};

std::string cuda_architectures() { return CBAM_ARCHITECTURES; }

}  // namespace

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CUDA, m) { Operators<Cuda>::implement(m); }

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_FRAGMENT, TORCH_EXTENSION_NAME, m) { m.def("cuda_architectures() -> str"); }

CBAM_EXPANDED(STABLE_TORCH_LIBRARY_IMPL, TORCH_EXTENSION_NAME, CompositeExplicitAutograd, m) {
    m.impl("cuda_architectures", TORCH_BOX(&cuda_architectures));
}
