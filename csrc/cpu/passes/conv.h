// The k x k convolution of the spatial gate over two small maps, and its gradient with respect to the weights.
//
// A map of H x W is framed by p = k / 2 zeros, with rows wide enough for whole vectors at every output and offset;
// results beyond the map are discarded. Several output rows are computed together, since they share input rows: one
// load serves up to kRows multiplications.
#pragma once

#include "../parts.h"
#include "scale_and_dots.h"

namespace {

template <class F> struct MapShape {
    static constexpr int kRows = 4;
    int64_t H, W, k, p;
    int64_t width;   // of a framed row
    int64_t height;  // of a framed map, with enough rows for kRows outputs from any row

    MapShape(int64_t H, int64_t W, int64_t k) : H(H), W(W), k(k), p(k / 2) {
        width = round_up(W, kLanes<F>) + k - 1;
        height = H + kRows - 1 + k - 1;
    }
    int64_t size() const { return width * height; }
    static int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
};

// Copies these rows of a map into the frame, with the zeros beside them; the first and last part also write the zeros
// above and below.
template <class F> void frame(const MapShape<F>& m, const F* map, Range rows, F* framed) {
    if (!rows.size()) return;
    const int64_t top = rows.first ? rows.first + m.p : 0, bottom = rows.last < m.H ? rows.last + m.p : m.height;
    __builtin_memset(framed + top * m.width, 0, (bottom - top) * m.width * sizeof(F));
    for (int64_t h = rows.first; h < rows.last; ++h)
        __builtin_memcpy(framed + (h + m.p) * m.width + m.p, map + h * m.W, m.W * sizeof(F));
}

template <class F> double framed_sum(const MapShape<F>& m, const F* framed) {
    double total = 0;
    for (int64_t h = 0; h < m.H; ++h)
        each_part(m.W, kChunk, [&](int64_t w, int64_t end) {
            Vec<F> sum = {};
            each_vector<F>(end - w, [&](int64_t i, auto lanes) {
                sum += load(framed + (h + m.p) * m.width + m.p + w + i, lanes);
            });
            total += sum_lanes<F>(sum);
        });
    return total;
}

// With c_i[h][w] = sum over offsets (a, b) of weight[i][a][b] in_i[h + a][w + b], for some rows h, computes out_0 = c_0
// + c_1 + bias, or, split, out_0 = c_0 and out_1 = c_1 of the same input. K is k if known at compile time, else 0.
template <class F, bool split, int K> CBAM_PASS void convolve_k(const MapShape<F>& m, Range rows,
                                                                const F* const* framed, const F* weight, F bias,
                                                                F* const* out) {
    constexpr int R = MapShape<F>::kRows;
    const int64_t k = K ? K : m.k;
    auto columns = [&]<int n>(int64_t h, int64_t w, Count<n>, auto last) {
        Vec<F> sum[2][R][n] = {};
        auto input_row = [&](int64_t a, auto meets) {
#pragma GCC unroll 1
            for (int64_t b = 0; b < k; ++b)
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const F* at = framed[split ? 0 : i] + (h + a) * m.width + w + b;
                    Vec<F> v[n];
                    for (int j = 0; j < n; ++j) v[j] = load(at + j * kLanes<F>, Whole{});
#pragma GCC unroll 4
                    for (int r = 0; r < R; ++r)
                        if (meets(r))
                            for (int j = 0; j < n; ++j) sum[i][r][j] += v[j] * weight[((i * k) + a - r) * k + b];
                }
        };
        // Input row h + a contributes to output row h + r at offset a - r.
        if constexpr (K) {
#pragma GCC unroll 16
            for (int64_t a = 0; a < K + R - 1; ++a) {
                if (a >= R - 1 && a < K) input_row(a, [](int) { return true; });
                else input_row(a, [&](int r) { return a >= r && a - r < K; });
            }
        } else {
#pragma GCC unroll 1
            for (int64_t a = 0; a < k + R - 1; ++a) input_row(a, [&](int r) { return a >= r && a - r < k; });
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            if (h + r < rows.last)
                each_in_tile<n>(last, [&](int j, auto lanes) {
                    const int64_t at = (h + r) * m.W + w + j * kLanes<F>;
                    store(out[0] + at, split ? sum[0][r][j] : sum[0][r][j] + sum[1][r][j] + bias, lanes);
                    if (split) store(out[1] + at, sum[1][r][j], lanes);
                });
    };
    for (int64_t h = rows.first; h < rows.last; h += R) {
        int64_t w = 0;
        for (; w + 2 * kLanes<F> <= m.W; w += 2 * kLanes<F>) columns(h, w, Count<2>{}, Whole{});
        each_vector<F>(m.W - w, [&](int64_t i, auto lanes) { columns(h, w + i, Count<1>{}, lanes); });
    }
}

template <class F, bool split>
void convolve(const MapShape<F>& m, Range rows, const F* const* framed, const F* weight, F bias, F* const* out) {
    m.k == 7 ? convolve_k<F, split, 7>(m, rows, framed, weight, bias, out)
             : convolve_k<F, split, 0>(m, rows, framed, weight, bias, out);
}

// Rows of a kernel whose gradients are computed together.
constexpr int kKernelRows = 2;

// dweight[a][b] = sum over outputs of dz[h][w] framed[h + a][w + b], for at most kKernelRows rows from a; framed_dz is
// dz in its own frame.
template <class F>
void weight_gradient(const MapShape<F>& m, int64_t a, const F* framed_dz, const F* framed, F* dweight) {
    const F* dz = framed_dz + m.p * m.width + m.p;                     // the frame's zeros follow its rows
    auto offsets = [&]<int A, int B>(int64_t b, Count<A>, Count<B>) {  // A x B neighbours share their loads
        double total[A][B] = {};
        each_part(m.H, kBlock, [&](int64_t first, int64_t last) {
            Vec<F> sum[A][B] = {};
            for (int64_t h = first; h < last + A - 1;
                 ++h)  // row h + a of the map and row h - i of dz contribute at offset a + i
                each_vector<F>(m.W, [&](int64_t w, auto lanes) {
                    Vec<F> d[A];
#pragma GCC unroll 2
                    for (int i = 0; i < A; ++i)
                        d[i] = h - i >= first && h - i < last ? load(dz + (h - i) * m.width + w, lanes) : Vec<F>{};
#pragma GCC unroll 7
                    for (int j = 0; j < B; ++j) {
                        const Vec<F> v = load(framed + (h + a) * m.width + w + b + j, lanes);
#pragma GCC unroll 2
                        for (int i = 0; i < A; ++i) sum[i][j] += v * d[i];
                    }
                });
            for (int i = 0; i < A; ++i)
                for (int j = 0; j < B; ++j) total[i][j] += sum_lanes<F>(sum[i][j]);
        });
        for (int i = 0; i < A; ++i)
            for (int j = 0; j < B; ++j) dweight[(a + i) * m.k + b + j] = F(total[i][j]);
    };
    auto each_offset = [&](auto rows) {
        int64_t b = 0;
        for (; b + 7 <= m.k; b += 7) offsets(b, rows, Count<7>{});
        for (; b + 3 <= m.k; b += 3) offsets(b, rows, Count<3>{});
        for (; b < m.k; ++b) offsets(b, rows, Count<1>{});
    };
    if (a + kKernelRows <= m.k) each_offset(Count<kKernelRows>{});
    else each_offset(Count<1>{});
}

}  // namespace
