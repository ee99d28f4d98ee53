// What the bindings and the kernels of every device agree on. Torch-free.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define CBAM_ANYWHERE __host__ __device__
#else
#define CBAM_ANYWHERE
#endif

namespace cbam {

enum class Dtype { f32, f64, f16, bf16 };

// Bytes of an element.
inline int size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

enum class Activation { relu, leaky_relu, silu, gelu };

// What attentions differ in, from the one integer that every operator takes, in the bits of
// cbam_fused/variants/config.py. All false is the tutorial's CBAM.
struct Switches {
    bool even_ties;        // the gradient of a maximum goes to all elements that reach it, not to the first
    bool no_mean, no_max;  // pools that the channel gate does not see
    bool mean_of_pools;    // the MLP takes the mean of the two pools, not each of them
    bool gate_terms;       // each pool's result goes through the channel gate's sigmoid before they are added
    bool single;           // the MLP is one layer, (C, C), without an activation
    bool hard_channel, hard_spatial;  // gates are min(max(v / 6 + 1 / 2, 0), 1), not the sigmoid
    Activation activation;
    bool no_channel;  // there is no channel gate, for operators that are not given its weights

    static constexpr int64_t kNoChannel = 1 << 10;

    Switches() = default;
    explicit Switches(int64_t code) {
        auto bit = [&](int i) { return bool(code >> i & 1); };
        even_ties = bit(0), no_mean = bit(1), no_max = bit(2), mean_of_pools = bit(3), gate_terms = bit(4);
        single = bit(5), hard_channel = bit(6), hard_spatial = bit(7), no_channel = code & kNoChannel;
        activation = Activation(code >> 8 & 3);
    }
    CBAM_ANYWHERE bool tutorial() const {
        return !(even_ties || no_mean || no_max || mean_of_pools || gate_terms || single || hard_channel ||
                 hard_spatial || activation != Activation::relu);
    }
    CBAM_ANYWHERE int pools() const { return 2 - no_mean - no_max; }
    // How often the MLP is taken, and how many sums of its results have a sigmoid of their own.
    CBAM_ANYWHERE int terms() const { return pools() == 1 || mean_of_pools ? 1 : 2; }
    CBAM_ANYWHERE int gates() const { return gate_terms ? terms() : 1; }
};

// One call. Tensors of x's shape are dense, all in the same layout: (N, C, H, W) or, channels_last,
// (N, H, W, C). Everything else is contiguous and in the accumulation type (double for f64, else float).
struct Problem {
    Dtype dtype;
    bool channels_last;
    bool relu;              // the forward ends in a ReLU
    bool channel, spatial;  // whether there is this gate; one that is absent is 1
    bool ws_channels_last;  // ws and dws lie in memory as (k, k, 2), not as (2, k, k)
    Switches switches;
    int64_t N, C, H, W, R, k;
    int64_t saved_hidden;  // numbers of an image's row of saved that are of the hidden layer

    const void *x, *residual;  // residual may be null
    // (R, C) (R) (C, R) (C) (2, k, k) (1). Biases may be null. So may w1 and w2 (no channel gate, R = 0), w1 alone (one
    // layer, R = C), and ws (no spatial gate, k = 1).
    const void *w1, *b1, *w2, *b2, *ws, *bs;
    void* y;      // written forward; read backward if relu
    void* saved;  // (N, saved_size)
    // (N, index_size): where the maxima over HW and over C were; on a GPU, with even ties, how many elements reach them
    int32_t* index;
    const void* s;  // (N, HW): the spatial gate, where it is not the sigmoid of the convolution; null if it is

    const void* dy;                           // null in backward: the gates alone were the result
    void *dx, *dresidual;                     // dresidual is null unless relu
    void *dw1, *db1, *dw2, *db2, *dws, *dbs;  // those of absent parameters are null
    // Gradients by g (N, C) and by s (N, HW), which products writes. If given, backward starts from them instead of
    // from products of its own, the second being that by the result of the convolution; null stands for zeros.
    void *dg, *ds;
    bool given;
    void* partial;  // (N, partial_size): each image's part of the parameter gradients

    CBAM_ANYWHERE int64_t HW() const { return H * W; }
    // Where in ws and dws the i-th of the (2, k, k) numbers is.
    CBAM_ANYWHERE int64_t tap(int64_t i) const { return ws_channels_last ? i % (k * k) * 2 + i / (k * k) : i; }
    // Only what there is has room.
    CBAM_ANYWHERE int64_t saved_size() const {
        const int of_channels = 1 + switches.pools() + (switches.gates() == 2 ? 2 : 0);
        return (channel ? of_channels * C : 0) + saved_hidden + (spatial ? 3 * HW() : 0);
    }
    CBAM_ANYWHERE int64_t index_size() const { return (channel && !switches.no_max ? C : 0) + (spatial ? HW() : 0); }
    CBAM_ANYWHERE int64_t partial_size() const {
        return switches.gates() * (C + R) + switches.terms() * R + 2 * k * k + 1;
    }
};

}  // namespace cbam
