// The CUDA implementation of the operators whose schemas csrc/ops.cpp has: the workspace, the stream and the device
// are PyTorch's current ones, and nothing waits for the GPU.
#include <stdlib.h>

#include <string>
#include <vector>

#include <torch/csrc/stable/accelerator.h>

#include "cuda/launch.h"
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

cbam::cuda::Device facts(int device) {
    cbam::cuda::Device d{};
    d.major = attribute(device, cudaDevAttrComputeCapabilityMajor);
    d.minor = attribute(device, cudaDevAttrComputeCapabilityMinor);
    d.multiprocessors = attribute(device, cudaDevAttrMultiProcessorCount);
    d.l2_bytes = attribute(device, cudaDevAttrL2CacheSize);
    d.shared_per_block = attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    // Every GPU with clusters has 8 blocks; those of data centres (9.0, 10.0, 10.3) have 16 where a kernel asks for it.
    d.max_cluster = !attribute(device, cudaDevAttrClusterLaunch) ? 1 : d.major <= 10 ? 16 : 8;
    return d;
}

const cbam::cuda::Device& facts_of(int device) {
    static const std::vector<cbam::cuda::Device> all = [] {
        int count = 0;
        check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
        std::vector<cbam::cuda::Device> devices;
        for (int i = 0; i < count; ++i) devices.push_back(facts(i));
        return devices;
    }();
    return all.at(device);
}

cudaStream_t current_stream(int device) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

class Cuda {
public:
    explicit Cuda(const Tensor& x)
        : index_(x.get_device_index()), guard_(index_), device_(facts_of(index_)), stream_(current_stream(index_)) {
        check(cudaSetDevice(index_), "cudaSetDevice");  // the guard is for PyTorch's copy of the runtime, not for ours
    }

    void forward(const Call& call) const {
        const Plan plan = planned(cbam::cuda::plan_forward, call.p);
        const Tensor workspace = call.new_bytes(cbam::cuda::forward_workspace(call.p, plan));
        check(cbam::cuda::forward(call.p, plan, workspace.mutable_data_ptr(), stream_), "forward");
    }

    void apply(const Call& call) const { check(cbam::cuda::apply(call.p, stream_), "apply"); }

    void products(const Call& call) const {
        const Plan plan = planned(cbam::cuda::plan_backward, call.p);
        const Tensor workspace = call.new_bytes(cbam::cuda::products_workspace(call.p, plan));
        check(cbam::cuda::products(call.p, plan, workspace.mutable_data_ptr(), stream_), "products");
    }

    void backward(Call& call) const {
        Problem& p = call.p;
        STD_TORCH_CHECK(!p.even_ties, "cbam_fused: the CUDA kernels do not serve even ties");
        const Plan plan = planned(cbam::cuda::plan_backward, p);
        const Tensor workspace = call.new_bytes(cbam::cuda::backward_workspace(p, plan));
        const Tensor partial = call.new_sums({p.N, p.partial_size()});
        p.partial = partial.mutable_data_ptr();
        check(cbam::cuda::backward(p, plan, workspace.mutable_data_ptr(), stream_), "backward");
    }

private:
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
