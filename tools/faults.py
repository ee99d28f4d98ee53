"""The faults that tools/mutations.py seeds: a file, a line of it that occurs once, what becomes of it, and the tests.

The tests are those that should fail, as arguments of pytest; the plainest choice that has no luck in it.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    tests: str


def _of(file: str, tests: str, *changes: tuple[str, str]) -> list[Fault]:
    return [Fault(file, old, new, tests) for old, new in changes]


VALUES, SEMANTICS = "tests/numerics/test_values.py", "tests/numerics/test_semantics.py"
SWITCHES = "tests/numerics/test_kernel_switches.py"

CPU = [
    *_of(
        "csrc/cpu/passes/pool.h",
        f"{SEMANTICS} {VALUES}",
        ("const I better = v > max;", "const I better = v >= max;"),
        ("if (mean[i] != mean[i]) prefer_nan", "if (mean[i] == 0) prefer_nan"),
        ("mean[r] = F(total * share);", "mean[r] = F(total);"),
        ("if (j < count) add_row<true>(", "add_row<true>("),
    ),
    *_of(
        "csrc/cpu/forward.h",
        f"{VALUES} {SWITCHES} -k 'options or mean'",
        ("mean[i] = (mean[i] + v.max_hw[c + i]) / 2;", "mean[i] = (mean[i] + v.max_hw[c + i]);"),
        ("if (add) pass = p.relu ?", "if (add) pass = !p.relu ?"),
    ),
    *_of(
        "csrc/cpu/passes/backward.h",
        VALUES,
        ("z = load(y + at, lanes) <= 0 ? V{} : z;", "z = load(y + at, lanes) < 0 ? V{} : z;"),
        ("else *p += row_add[first + j];", "else *p = row_add[first + j];"),
        ("for (; i < last; ++i) block(i, Count<1>{});", "for (; i + 1 < last; ++i) block(i, Count<1>{});"),
    ),
    *_of(
        "csrc/cpu/backward.h",
        f"{VALUES} {SEMANTICS} tests/numerics/test_gates.py"
        " -k 'options or hidden or ties or even or spread or gradcheck'",
        ("routed[k] *= v.g[v.argmax_c[k]];", "routed[k] *= 1;"),
        ("if (p.dbs) *(F*)p.dbs = sum(partial.dbs, 0);", "if (p.dbs) *(F*)p.dbs = sum(partial.dws, 0);"),
        ("scratch.share[k] = (scratch.routed[k] /= count[k]) * v.max_c[k];", "scratch.share[k] = v.max_c[k];"),
    ),
    *_of(
        "csrc/cpu/backward.h",
        f"{SWITCHES} -k spread",
        ("const auto *g = p.dy || p.spatial ? gates.g : scratch.ones", "const auto *g = gates.g"),
    ),
    *_of(
        "csrc/binding/checks.h",
        "tests/numerics/test_hostile.py tests/numerics/test_errors.py",
        ("const bool fits = sizes.size() == 4 && Kind(t) == kind &&", "const bool fits = sizes.size() == 4 &&"),
    ),
]

CUDA = [
    *_of(
        "csrc/cuda/common/device.cuh",
        "tests/cuda/test_cuda_semantics.py",
        ("!nan_a && (nan_b || b.value > a.value)", "!nan_a && b.value > a.value"),
        ("const bool b_wins = equal ? b.index < a.index :", "const bool b_wins = equal ? b.index > a.index :"),
    ),
    *_of(
        "csrc/cuda/items/backward.cuh",
        "tests/cuda/test_staged.py -k 'sizes or options'",
        ("dmaps[q] = sum.mean / F(p.C);", "dmaps[q] = sum.mean;"),
        ("return dmax[q] * max[q];", "return dmax[q];"),
    ),
    *_of(
        "csrc/cuda/items/apply.cuh",
        "tests/cuda/test_staged.py -k 'options'",
        ("if constexpr (with_relu) relu(result);", ""),
    ),
    *_of(
        "csrc/cuda/on_chip/forward.cuh",
        "tests/cuda/test_on_chip.py -k 'sizes or epilogue or kernel'",
        ("const float bias = b.p.bs ? b.ws[2 * b.kk] : 0;", "const float bias = 0;"),
    ),
    *_of(
        "csrc/cuda/on_chip/pool.cuh",
        "tests/cuda/test_on_chip.py -k 'sizes or epilogue or kernel'",
        ("const float mean = a.sum / o.rows;", "const float mean = a.sum / (o.rows + 1);"),
    ),
    *_of(
        "csrc/cuda/items/pool.cuh",
        "tests/cuda/test_staged.py -k negative",
        ("return {F(0), {F(-INFINITY), i}};", "return {F(0), {F(0), i}};"),
    ),
    *_of(
        "csrc/cuda/on_chip/pool.cuh",
        "tests/cuda/test_on_chip.py -k negative",
        ("Maximum<float> max = {-INFINITY, kNone};", "Maximum<float> max = {0, kNone};"),
    ),
    *_of(
        "csrc/cuda/items/mlp_backward.cuh",
        "tests/cuda/test_switches.py -k 'dtypes'",
        ("if (of.mean_of_pools) first_term /= 2;", ""),
    ),
]

TRITON = [
    *_of(
        "cbam_fused/triton/forward.py",
        "tests/triton/test_triton_values.py -k 'options'",
        ("value = tl.where(value < 0, 0, value)", "value = tl.where(value > 0, 0, value)"),
        ("gate += tl.load(bs)", "gate += 2 * tl.load(bs)"),
    ),
    *_of(
        "cbam_fused/triton/forward.py",
        "tests/triton/test_triton_values.py -k negative",
        (
            'update_max(maximum, index, tl.where(inside, value, float("-inf")), at, EVEN)',
            "update_max(maximum, index, tl.where(inside, value, 0.0), at, EVEN)",
        ),
    ),
    *_of(
        "cbam_fused/triton/backward.py",
        "tests/triton/test_triton_values.py -k 'options or kernel_sizes'",
        ("gradient_of_s = sigmoid_backward(gate, gradient_of_s, HARD)", "gradient_of_s = gradient_of_s"),
    ),
    *_of(
        "cbam_fused/triton/convolution_backward.py",
        "tests/triton/test_triton_values.py -k 'options or kernel_sizes'",
        ("turned = K * K - 1 - t", "turned = t"),
    ),
    *_of(
        "cbam_fused/triton/common.py",
        "tests/triton/test_triton_semantics.py -k 'nan or ties'",
        ("better = (value > maximum) | ((value != value) & (maximum == maximum))", "better = value > maximum"),
    ),
]

AUTOGRAD = [
    *_of(
        "cbam_fused/ops/autograd.py",
        "tests/numerics/test_autograd.py tests/numerics/test_batch_norm.py"
        " -k 'double or moves or statistics or gradcheck'",
        ("return ds * s * (1 - s)", "return ds * s"),
        ("return dy if y is None else torch.where(y <= 0, 0, dy)", "return dy"),
        ("variance = inverse_deviation**-2 - eps", "variance = inverse_deviation**-2 - 1000 * eps"),
        ("return torch.is_grad_enabled() or forward_ad._current_level >= 0", "return False"),
        ("views = [t.view_as(t) for t in wanted.values()]", "views = list(wanted.values())"),
    ),
    *_of(
        "cbam_fused/batch_norm.py",
        "tests/numerics/test_batch_norm.py",
        ("unbiased = variance * (count / (count - 1))", "unbiased = variance"),
        ("offset = (-mean if bs is None else bs - mean) * scale", "offset = -mean * scale"),
    ),
]

CHECKS = [
    *_of(
        "cbam_fused/checks.py",
        "tests/numerics/test_errors.py tests/numerics/test_gates.py -k 'wrong or bias or float32_parameters'",
        ("or ws.shape[3] % 2 == 0", "or ws.shape[3] == 0"),
        ("not isinstance(residual, Tensor) or residual.shape != x.shape", "not isinstance(residual, Tensor)"),
        ("if t.device != x.device:", "if t.device.type == 'mps':"),
        ("if t.dtype != x.dtype and not (or_float32 and t.dtype == torch.float32):", "if t.dtype != x.dtype:"),
        ("bias.shape != (size,)", "bias.dim() != 1"),
    ),
    *_of(
        "cbam_fused/hooks.py",
        "tests/models/test_called.py tests/torch/test_hooks.py",
        ("return m.stride == m.dilation == (1, 1) and m.groups == 1", "return m.groups == 1"),
    ),
    *_of(
        "cbam_fused/as_built.py",
        "tests/models/test_called.py tests/torch/test_hooks.py",
        ("(len(a), len(b), len(c), len(d), len(e)) == self.sizes", "True"),
        ("for m in (a, b, c, d, e):", "for m in (b, c, d, e):"),
    ),
]

SURGERY = [
    *_of(
        "cbam_fused/surgery/insertion.py",
        "tests/models/test_placements.py tests/models/test_surgery.py"
        " -k 'in_block or removal or swin or half or dtype'",
        ('where == "in_block" and is_residual_block(m)}', 'where == "in_block" and False}'),
        ("        restore(target)", "        pass"),
        ("return output.permute(0, 2, 3, 1)", "return output.permute(0, 3, 2, 1)"),
        ("if output.dtype not in (torch.float16, torch.bfloat16):", "if True:"),
    ),
    *_of(
        "cbam_fused/surgery/freezing.py",
        "tests/models/test_freezing.py",
        ("return super().train(False)", "return super().train(mode)"),
        ("module.train(network.training)", "module.train(False)"),
        ("parameter.requires_grad_(own[name])", "parameter.requires_grad_(True)"),
    ),
]

REPLACE = [
    *_of(
        "cbam_fused/replace/match.py",
        "tests/models/test_doubts.py -k 'almost'",
        ("TOLERANCE = 1e-8", "TOLERANCE = 1e-1"),
        ("torch.allclose(a, b, rtol=TOLERANCE,", "torch.allclose(a, b, rtol=1e-5,"),
    ),
    *_of(
        "cbam_fused/replace/match.py",
        "tests/models/test_replace.py tests/models/test_doubts.py -k 'skipped or kept or doubt or hide or random'",
        ("if generator_states() != before:", "if False:"),
        ("reason = foreign_operator(module) or _more_draws(module, proof, rng)", 'reason = ""'),
    ),
]

REPLACE += _of(
    "cbam_fused/replace/candidates.py",
    "tests/models/test_replace.py -k 'kept or hide'",
    ("norm.eps, norm.momentum = old.eps, old.momentum", "norm.momentum = old.momentum"),
    ("target.requires_grad_(tensor.requires_grad)", "target.requires_grad_(True)"),
)

GARBAGE = [
    *_of(
        "garbage/data/folders.py",
        "tests/garbage/test_data.py tests/garbage/test_sources.py -k 'split or form or exif or copies'",
        ("if places[other] != places[path]:", "if places[other] == places[path]:"),
        ('random.Random(f"{SPLIT_SEED}/{name}").shuffle(of_class)', "random.shuffle(of_class)"),
        ("limit = round(LONGEST * shorter)", "limit = round(9 * LONGEST * shorter)"),
    ),
    *_of(
        "garbage/data/loading.py",
        "tests/garbage/test_data.py tests/garbage/test_distributed.py -k 'share or seed or last'",
        ("[rank::world_size].split(batch_size)", "[::world_size].split(batch_size)"),
        ("torch.manual_seed(seed)", "torch.manual_seed(0)"),
        ("if len(chunks) > 1 and len(chunks[-1]) == 1:", "if len(chunks) > 1 and len(chunks[-1]) == 0:"),
    ),
    *_of(
        "garbage/data/classes.py",
        "tests/garbage/test_classes.py tests/garbage/test_train_errors.py"
        " -k 'refused or flat or sources or folder or called'",
        ('if "val" in folders_of and classes != list(folders_of["val"]):', "if False:"),
        ("return bool(subfolders(folder)) and 2 * direct <=", "return bool(subfolders(folder)) and direct <="),
    ),
    *_of(
        "garbage/train/loss.py",
        "tests/garbage/test_training_options.py -k 'weight'",
        ("return len(labels) / (num_classes * counts", "return len(labels) / (counts"),
        ("smoothed = targets * (1 - smoothing) +", "smoothed = targets +"),
    ),
    *_of(
        "garbage/report/metrics.py",
        "tests/garbage/test_metrics.py",
        ("* BINS).ceil().long()", "* BINS).floor().long()"),
        ("per_class[name] = per_class[name].where(opposed, torch.nan)", "pass"),
    ),
]

FAULTS = {
    "CPU kernels": CPU,
    "CUDA kernels": CUDA,
    "Triton kernels": TRITON,
    "autograd and BatchNorm": AUTOGRAD,
    "checks and hooks": CHECKS,
    "surgery": SURGERY,
    "replace_cbam": REPLACE,
    "classifier": GARBAGE,
}
