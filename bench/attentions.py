"""Squeeze-and-excitation and ultralytics' CBAM compared with eager and torch.compile, and networks before and after
replace_cbam, on the CPU in float32: python -m bench.attentions [--quick] [--networks]
"""

import argparse
import copy
import statistics
import time

import torch
import torchvision
from torch import Tensor, nn

import cbam_fused
from cbam_fused import reference, replace_cbam

from . import cases, timing

VARIANTS = ("torchvision_se", "ultralytics")
NETWORKS = ("efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf")
BATCH, SIDE = 16, 160


def implementations(variant: str, channels: int) -> dict[str, nn.Module]:
    """The reference, the compiled reference, and the fused module, with the same weights."""
    torch.manual_seed(0)
    eager, fused = (package.CBAM(channels, variant=variant) for package in (reference, cbam_fused))
    fused.load_state_dict(eager.state_dict())
    torch._dynamo.reset()
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=False)
    return {"eager": eager, "compile": compiled, "fused": fused}


def results(module: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], dy)]


def check(modules: dict[str, nn.Module], x: Tensor, dy: Tensor) -> None:
    """Wrong results are not timed.

    Raises:
        AssertionError: the error of fused against float64 exceeds twice that of eager, and rounding.
    """
    exact = results(copy.deepcopy(modules["eager"]).double(), x.double(), dy.double())
    found = {name: results(modules[name], x, dy) for name in ("eager", "fused")}
    for truth, eager, fused in zip(exact, found["eager"], found["fused"], strict=True):
        floor = 16 * torch.finfo(torch.float32).eps * truth.abs().max()
        bound = 2 * (eager.double() - truth).abs().max() + floor
        assert (fused.double() - truth).abs().max() <= bound, "the results of the fused module are wrong"


def layers(quick: bool) -> None:
    print("| attention | map | layout | eager ms | compile ms | fused ms | copies | eager / fused | compile / fused |")
    print("|---|---|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        ratios: dict[str, list[float]] = {"eager": [], "compile": []}
        for case in cases.grid(quick):
            if case.dtype != "float32" or case.device != "cpu":
                continue
            problem = case.problem()
            x, dy = problem.inputs["x"].detach(), problem.dy
            modules = implementations(variant, case.shape[1])
            check(modules, x[:2], dy[:2])
            one_round = timing.Round(modules, x, dy)
            count = timing.rounds_for(0.5 if quick else 2.5, 5, one_round)
            one_round.times = timing.Round(modules, x, dy).times  # the first round was a warm-up
            for _ in range(count):
                one_round()
            seconds = one_round.medians()
            both, copied = seconds["both"], seconds["forward"]["copy"]
            for name, found in ratios.items():
                found.append(both[name] / both["fused"])
            cells = [f"{both[name] * 1e3:.2f}" for name in ("eager", "compile", "fused")]
            cells += [f"{both['fused'] / copied:.1f}", *(f"{found[-1]:.2f}" for found in ratios.values())]
            size = "x".join(map(str, case.shape))
            print(f"| {variant} | {size} | {case.layout} | {' | '.join(cells)} |", flush=True)
        means = {name: statistics.geometric_mean(found) for name, found in ratios.items()}
        least = {name: min(found) for name, found in ratios.items()}
        print(f"\n{variant}: geometric mean {means}, least {least}\n", flush=True)


def networks(quick: bool) -> None:
    print("| network | step before ms | after ms | less |\n|---|---|---|---|")
    for name in NETWORKS:
        torch.manual_seed(0)
        before = torchvision.models.get_model(name, num_classes=12).to(memory_format=torch.channels_last)
        after = copy.deepcopy(before)
        replaced = replace_cbam(after).replaced
        assert replaced, "no attention was replaced"
        x = torch.randn(4 if quick else BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        times: dict[str, list[float]] = {"before": [], "after": []}
        for _ in range(3 if quick else 15):
            for which, model in (("before", before), ("after", after)):
                start = time.perf_counter()
                model(x).square().mean().backward()
                times[which].append(time.perf_counter() - start)
        medians = {which: statistics.median(found[1:]) * 1e3 for which, found in times.items()}
        less = 1 - medians["after"] / medians["before"]
        print(f"| {name} | {medians['before']:.0f} | {medians['after']:.0f} | {less:.1%} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two maps, few repetitions")
    parser.add_argument("--networks", action="store_true", help="only the training steps of networks")
    options = parser.parse_args()
    timing.keep_freed_memory()
    if not options.networks:
        layers(options.quick)
    networks(options.quick)
