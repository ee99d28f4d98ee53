// The interface between the bindings and the kernels of every device. Torch-free.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define CBAM_ANYWHERE __host__ __device__
#else
#define CBAM_ANYWHERE
#endif

namespace cbam {

enum class Dtype { f32, f64, f16, bf16 };

// Bytes per element.
inline int size_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

enum class Activation { relu, leaky_relu, silu, gelu };

// The switches, decoded from the operators' integer, with the bits of cbam_fused/variants/config.py. All false is the
// tutorial's CBAM.
struct Switches {
    bool even_ties;                   // the gradient of a maximum is split among tied elements
    bool no_mean, no_max;             // pools that the channel gate does not use
    bool mean_of_pools;               // the MLP's input is the mean of the two pools
    bool gate_terms;                  // the channel gate's sigmoid is applied before the sum over pools
    bool single;                      // the MLP is one layer (C, C) without activation
    bool hard_channel, hard_spatial;  // the gate is min(max(v / 6 + 1 / 2, 0), 1)
    Activation activation;
    bool no_channel;  // no channel gate, for operators without its weights

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
    // How many times the MLP runs, and how many sums of its results have a sigmoid.
    CBAM_ANYWHERE int terms() const { return pools() == 1 || mean_of_pools ? 1 : 2; }
    CBAM_ANYWHERE int gates() const { return gate_terms ? terms() : 1; }
};

// A call. Tensors of x's shape are dense and in the same layout: (N, C, H, W) or, channels_last, (N, H, W, C). All
// others are contiguous and in the accumulation type (double for f64, else float).
struct Problem {
    Dtype dtype;
    bool channels_last;
    bool relu;              // the forward ends in a ReLU
    bool channel, spatial;  // presence of the gate; an absent gate is 1
    bool ws_channels_last;  // ws and dws are (k, k, 2) in memory, not (2, k, k)
    Switches switches;
    int64_t N, C, H, W, R, k;
    int64_t saved_hidden;  // elements of the hidden layer in an image's row of saved

    const void *x, *residual;  // residual may be null
    // (R, C) (R) (C, R) (C) (2, k, k) (1). Biases may be null, and so may w1 and w2 (no channel gate, R = 0), w1
    // (single layer, R = C), and ws (no spatial gate, k = 1).
    const void *w1, *b1, *w2, *b2, *ws, *bs;
    void* y;         // written forward; read backward if relu
    void* saved;     // (N, saved_size)
    int32_t* index;  // (N, index_size): argmax over HW and over C; on a GPU, with even ties, the number of maxima
    const void* s;   // (N, HW): the spatial gate if it is not the sigmoid of the convolution, else null

    const void* dy;                           // null in backward: the result was a gate
    void *dx, *dresidual;                     // dresidual is null unless relu
    void *dw1, *db1, *dw2, *db2, *dws, *dbs;  // null for absent parameters
    // Gradients of g (N, C) and of s (N, HW); gate_grads writes them. If given, backward starts from them; the second
    // is then the gradient of the convolution's result. null means zeros.
    void *dg, *ds;
    bool given;
    void* partial;  // (N, partial_size): parameter gradients per image

    CBAM_ANYWHERE int64_t HW() const { return H * W; }
    // The index in ws and dws of the i-th of the (2, k, k) elements, and of the i-th element of one of the two maps.
    CBAM_ANYWHERE int64_t tap(int64_t i) const { return ws_channels_last ? tap(i / (k * k), i % (k * k)) : i; }
    CBAM_ANYWHERE int64_t tap(int64_t map, int64_t i) const { return ws_channels_last ? 2 * i + map : map * k * k + i; }
    // Absent gates take no space.
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
