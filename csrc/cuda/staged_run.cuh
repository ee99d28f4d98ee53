// The operators of the staged schedule for one element type: the passes in order, group by group of images.
#pragma once

#include <type_traits>

#include "gates.h"
#include "staged.h"
#include "staged_apply.cuh"
#include "staged_gradient.cuh"
#include "staged_join.cuh"
#include "staged_pool.cuh"
#include "staged_products.cuh"
#include "staged_reduce.cuh"
#include "staged_workspace.h"

namespace cbam::cuda {

template <Dtype dtype> using Element = std::conditional_t<
    dtype == Dtype::f32, float,
    std::conditional_t<dtype == Dtype::f64, double, std::conditional_t<dtype == Dtype::f16, __half, __nv_bfloat16>>>;

// The passes over x of a group of images. V: elements of an access.
template <class T, int V> struct Passes {
    using F = Acc<T>;
    const Problem& p;
    Launcher& launch;
    Group<F> group;
    Matrix matrix;

    Passes(const Problem& p, Launcher& launch, int64_t first, int64_t images)
        : p(p), launch(launch), group{p, first, images}, matrix(p, V, sizeof(T)) {}

    // These images in a tensor of x's shape.
    template <class E> E* of_group(E* tensor) const { return tensor ? tensor + group.first * p.C * p.HW() : nullptr; }
    const T* input(const void* tensor) const { return of_group((const T*)tensor); }
    T* output(void* tensor) const { return of_group((T*)tensor); }
    T* masked_dy() const { return output(p.dresidual ? p.dresidual : p.dx); }

    // The spatial gate: as given, or that of saved.
    Rows<const F> s() const {
        return p.s ? Rows<const F>{(const F*)p.s + group.first * p.HW(), p.HW()} : read(group.s());
    }
    Rows<const F> row_gate() const { return p.channels_last ? s() : read(group.g()); }
    Rows<const F> column_gate() const { return p.channels_last ? read(group.g()) : s(); }

    static Tiling backwards(Tiling t) {
        t.backwards = true;
        return t;
    }

    template <class Operation> void reduce(bool along, const Tiling& t, const Operation& operation) {
        const auto kernel = along ? reduce_along<T, V, Operation> : reduce_across<T, V, Operation>;
        const size_t shared = along ? along_bytes<T, V, Operation>(t) : across_bytes<T, V, Operation>(t);
        launch(kernel, group.images * t.blocks(), shared, input(p.x), t, operation);
    }

    void forward(void* workspace) {
        const int HW = p.HW(), C = p.C;
        if (p.w1) {
            const ForwardSpace<F> space(p, matrix, group.images, workspace);
            const int64_t row = int64_t(space.parts) * C;
            reduce(!p.channels_last, space.pool,
                   Pool<F, false>{{}, {space.total, row}, {space.max, row}, {space.argmax, row}, C, F(1)});
            channel_gate_forward(launch, group, PoolParts<F>{space.total, space.max, space.argmax, space.parts});
        } else {
            launch(absent_gate<F>, group.images * ceil_div(C, kThreads), 0, group.mean_hw(), group.max_hw(), group.g(),
                   group.argmax_hw(), C);
        }
        if (p.ws) {
            reduce(p.channels_last, backwards(p.channels_last ? matrix.along(true) : matrix.across(true)),
                   Pool<F, true>{read(group.g()), group.mean_c(), group.max_c(), group.argmax_c(), HW, F(C)});
            spatial_gate_forward(launch, group);
        } else {
            launch(absent_gate<F>, group.images * ceil_div(HW, kThreads), 0, group.mean_c(), group.max_c(), group.s(),
                   group.argmax_c(), HW);
        }
        if (p.y) apply();
    }

    void apply() {
        const Tiling t = matrix.elementwise(group.images);
        const auto kernel = p.residual ? (p.relu ? scale<T, V, true, true> : scale<T, V, true, false>)
                                       : (p.relu ? scale<T, V, false, true> : scale<T, V, false, false>);
        launch(kernel, group.images * t.blocks(), apply_bytes<T, V>(t), input(p.x), input(p.residual), output(p.y), t,
               row_gate(), column_gate());
    }

    // Into dg, (images, C), and ds, (images, HW).
    void products(void* workspace, F* dg, F* ds, bool before_sigmoid) {
        const ProductsSpace<F> space(p, matrix, group.images, workspace);
        const Tiling& t = space.products;
        const ProductTensors<T, V> tensors{input(p.x), input(p.dy), p.relu ? input(p.y) : nullptr, masked_dy()};
        launch(p.relu ? cuda::products<T, V, true> : cuda::products<T, V, false>, group.images * t.blocks(),
               products_bytes<T, V>(t), tensors, t, row_gate(), column_gate(), space.along, space.down);
        const GateParts<F> along{space.along, t.col_tiles}, down{space.down, t.row_tiles};
        if (p.channels_last) join(down, along, before_sigmoid, dg, ds);
        else join(along, down, before_sigmoid, dg, ds);
    }

    void join(GateParts<F> channels, GateParts<F> pixels, bool before_sigmoid, F* dg, F* ds) {
        const int C = p.C, HW = p.HW();
        launch(cuda::join<F>, group.images * (ceil_div(C, kThreads) + ceil_div(HW, kThreads)), 0, channels, pixels,
               before_sigmoid ? read(group.s()) : Rows<const F>{}, dg, ds, C, HW);
    }

    void backward(void* workspace) {
        const BackwardSpace<F> space(p, matrix, group.images, workspace);
        const int64_t C = p.C, HW = p.HW();
        F *dg = space.dg, *dz = space.dz;
        if (!p.given) {
            products(workspace, dg, dz, true);
        } else {
            // What was not given is a sum of nothing.
            if (!p.dg || !p.ds) join({}, {}, false, p.dg ? nullptr : dg, p.ds ? nullptr : dz);
            if (p.dg) dg = (F*)p.dg + group.first * C;
            if (p.ds) dz = (F*)p.ds + group.first * HW;
        }
        Rows<const F> dmean_c{}, dmax_c{}, dmean_hw{}, dmax_hw{};
        if (p.ws) {
            spatial_gate_backward(launch, group, dz, space.dmaps);
            dmean_c = {space.dmaps, 2 * HW}, dmax_c = {space.dmaps + HW, 2 * HW};
        }
        if (p.w1) {
            if (p.ws)
                reduce(!p.channels_last, backwards(space.maps),
                       MapProducts<F>{dmean_c,
                                      dmax_c,
                                      read(group.g()),
                                      read(group.max_c()),
                                      read(group.argmax_c()),
                                      {space.through, space.parts * C},
                                      int(C)});
            channel_gate_backward(launch, group, dg, space.through, p.ws ? space.parts : 0, space.dpools);
            dmean_hw = {space.dpools, 2 * C}, dmax_hw = {space.dpools + C, 2 * C};
        }
        const T* dy = p.dy && p.relu ? masked_dy() : input(p.dy);
        const Sides<F> pixels{dy ? s() : Rows<const F>{}, dmean_c, dmax_c, read(group.argmax_c())};
        const Sides<F> channels{read(group.g()), dmean_hw, dmax_hw, read(group.argmax_hw())};
        const Tiling t = backwards(matrix.elementwise(group.images));
        const auto kernel = p.channels_last ? input_gradient<T, V, true> : input_gradient<T, V, false>;
        launch(kernel, group.images * t.blocks(), GradientSides<F, V>::bytes(t), dy, output(p.dx), t, pixels, channels);
    }

    void run(StagedOperator op, void* workspace) {
        switch (op) {
            case StagedOperator::forward: return forward(workspace);
            case StagedOperator::apply: return apply();
            case StagedOperator::products:
                return products(workspace, (F*)p.dg + group.first * p.C, (F*)p.ds + group.first * p.HW(), false);
            case StagedOperator::backward: return backward(workspace);
        }
    }
};

// The accesses there is code for, in elements: of 16 bytes, for rows of half types also of 8, or of one element.
template <class T> constexpr int kAccesses[] = {kVector<T>, sizeof(T) == 2 ? 4 : 1, 1};

// The widest that every row of every tensor of x's shape may start with.
template <class T> int widest_access(const Problem& p) {
    uintptr_t starts = (p.channels_last ? p.C : p.HW()) * sizeof(T);
    for (const void* tensor : {p.x, p.residual, (const void*)p.y, p.dy, (const void*)p.dx, (const void*)p.dresidual})
        starts |= reinterpret_cast<uintptr_t>(tensor);
    for (int access : kAccesses<T>)
        if (starts % (access * sizeof(T)) == 0) return access;
    return 1;
}

template <Dtype dtype>
cudaError_t run_staged_of(StagedOperator op, const Problem& p, int64_t images, void* workspace, cudaStream_t stream) {
    using T = Element<dtype>;
    Launcher launch{stream};
    for (int64_t first = 0; first < p.N; first += images) {
        const int64_t here = std::min(images, p.N - first);
        switch (widest_access<T>(p)) {
            case kAccesses<T>[0]: Passes<T, kAccesses<T>[0]>(p, launch, first, here).run(op, workspace); break;
            case 1: Passes<T, 1>(p, launch, first, here).run(op, workspace); break;
            default: Passes<T, kAccesses<T>[1]>(p, launch, first, here).run(op, workspace);
        }
    }
    return launch.status;
}

template <Dtype dtype> int64_t staged_workspace_of(StagedOperator op, const Problem& p, int64_t images) {
    using T = Element<dtype>;
    using F = Acc<T>;
    int64_t bytes = 0;
    for (int access : kAccesses<T>) {  // the addresses, which decide it, need not be known yet
        const Matrix m(p, access, sizeof(T));
        switch (op) {
            case StagedOperator::forward: bytes = std::max(bytes, ForwardSpace<F>(p, m, images, nullptr).bytes); break;
            case StagedOperator::products:
                bytes = std::max(bytes, ProductsSpace<F>(p, m, images, nullptr).bytes);
                break;
            case StagedOperator::backward:
                bytes = std::max(bytes, BackwardSpace<F>(p, m, images, nullptr).bytes);
                break;
            case StagedOperator::apply: break;
        }
    }
    return bytes;
}

}  // namespace cbam::cuda
