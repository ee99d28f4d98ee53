"""The part of docs/gpu.md on the CUDA kernels: their machine code, and a roofline from bytes that are counted."""

from typing import NamedTuple

import cuda_targets
import torch
from emulation import driver
from test_cuda_code import WIDE, is_wide
from triton_traffic import EagerBytes
from truth import Problem, random_problem

from cbam_fused import reference

INTRODUCTION = """
# CUDA kernels for NVIDIA GPUs

The rest is about the kernels of `csrc/cuda`, which `pip install .` compiles where nvcc and a torch for CUDA of the same
major version are; the NVIDIA GPUs that they were built for then use them instead of Triton's. **They have not run on a
GPU yet either, and no time is claimed.** Their sources run on the CPU in the emulation of `tests/emulation`, which
checks values, bounds and races, and counts bytes.

Where an image fits into the shared memory of a block, or of a cluster of blocks from compute capability 9.0 on, it is
read once and y written once (backward: x and dy read, dx written once), in one launch. All else, and float64, takes
the staged schedule: the passes of the Triton kernels. `csrc/cuda/plan.cpp` chooses, by shape, dtype and device;
`CBAM_FUSED_CUDA_SCHEDULE=staged`, or a number of blocks, overrides it.

## Compiled code

Registers a thread, threads a block, and how many blocks these two allow on a multiprocessor, for the variant of each
kernel with the widest accesses. {stacks} The passes over tensors of x's size load and store 16 bytes at a time.
`tests/test_cuda_code.py` fails otherwise, and looks at the other variants too.

| kernel | template arguments | {columns} |
|---|---|{rule}|
"""

ROOFLINE = """

## Roofline: an estimate

Bytes over the bandwidth of the card, for {images} images: the time below which nothing that moves these bytes can get,
and **not a measurement**. Bytes are counted in the emulation, each tensor's once a launch, for the schedule that the
plan chooses for the card; those of plain PyTorch are each operator's tensors, once an operator, as above. Caches may
serve a part of either. Both gates, 7 x 7 window, NCHW; microseconds, ours / plain PyTorch's, and the schedule.

| pass | x, one image | dtype | {cards} |
|---|---|---|{rule}|
"""

IMAGES = 32
MAPS = {
    "ResNet-18": [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    "ResNet-50": [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)],
}


class Card(NamedTuple):
    """Bandwidth in bytes a second, and what a plan depends on. Source: NVIDIA's data sheets, SXM versions."""

    bandwidth: float
    device: dict[str, int]


def device(major: int, multiprocessors: int, l2: int, shared: int, cluster: int) -> dict[str, int]:
    facts = {"multiprocessors": multiprocessors, "l2_bytes": l2 << 20, "shared_per_block": shared << 10}
    return {"major": major, "minor": 0, "max_cluster": cluster} | facts


CARDS = {
    "A100, 2.04 TB/s": Card(2.04e12, device(8, 108, 40, 163, 1)),
    "H100, 3.35 TB/s": Card(3.35e12, driver.H100),
    "B200, 8 TB/s": Card(8e12, device(10, 148, 126, 227, 16)),
}


def text() -> str:
    return code() + roofline()


def code() -> str:
    kernels = cuda_targets.all_kernels()
    rows = {}
    for target, compiled in kernels.items():
        for k in compiled:
            if k.name not in WIDE or is_wide(k):
                cell = f"{k.registers} x {k.threads}, {k.blocks()}"
                rows.setdefault((k.name, ", ".join(k.arguments)), {})[target] = cell
    columns = list(kernels)
    lines = [
        f"| `{name}` | {f'`{arguments}`' if arguments else ''} | {' | '.join(cells.get(c, '') for c in columns)} |"
        for (name, arguments), cells in sorted(rows.items())
    ]
    deep = sorted({k.name for compiled in kernels.values() for k in compiled if k.stack or k.local or k.local_accesses})
    stacks = f"Local memory is used by {', '.join(deep)}." if deep else "None spills, has a stack or uses local memory."
    rule = "|".join(["---"] * len(columns))
    return INTRODUCTION.format(columns=" | ".join(columns), rule=rule, stacks=stacks) + "\n".join(lines)


def roofline() -> str:
    head = ROOFLINE.format(images=IMAGES, cards=" | ".join(CARDS), rule="|".join(["---"] * len(CARDS)))
    cases = [(n, shape, d) for n, maps in MAPS.items() for shape in maps for d in (torch.float32, torch.bfloat16)]
    return head + "\n".join(line for case in cases for line in rows(*case)) + "\n"


def rows(network: str, shape: tuple[int, int, int], dtype: torch.dtype) -> list[str]:
    eager = at_all_images(lambda n: eager_bytes(problem(n, shape, dtype)))
    plans = {name: chosen(shape, dtype, card) for name, card in CARDS.items()}
    moved = {
        plan: at_all_images(lambda n, plan=plan: bytes_of(problem(n, shape, dtype), plan))
        for plan in set(plans.values())
    }
    lines = []
    for i, part in enumerate(("forward", "backward")):
        cells = []
        for name, card in CARDS.items():
            plan = plans[name][i]
            ours, plain = (1e6 * b[i] / card.bandwidth for b in (moved[plans[name]], eager))
            schedule = "staged" if plan.schedule == "staged" else f"{plan.cluster} block{'s' * (plan.cluster > 1)}"
            cells.append(f"{ours:.1f} / {plain:.0f}, {schedule}")
        size = "x".join(map(str, shape))
        lines.append(f"| {network} {part} | {size} | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |")
    return lines


def problem(images: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Problem:
    return random_problem((images, *shape), dtype, hidden=shape[0] // 16)


def at_all_images(count) -> list[float]:
    """What is counted forward and backward, which is linear in the number of images, from one and from two images."""
    one, two = count(1), count(2)
    return [a + (IMAGES - 1) * (b - a) for a, b in zip(one, two, strict=True)]


def chosen(shape: tuple[int, int, int], dtype: torch.dtype, card: Card) -> tuple[driver.Plan, driver.Plan]:
    module = driver.module("plain")
    p = module.Problem()
    p.dtype = getattr(module.Dtype, {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype])
    p.N, (p.C, p.H, p.W), p.R, p.k = IMAGES, shape, shape[0] // 16, 7
    for name in ("x", "w1", "w2", "ws", "y", "dy", "dx"):
        setattr(p, name, 16)  # an aligned address: a plan only looks whether they are there
    plans = (choose(p, module.Device(**card.device)) for choose in (module.plan_forward, module.plan_backward))
    # Of a staged plan the groups change no byte.
    return tuple(
        driver.Plan("on_chip", p.cluster) if p.schedule == module.Schedule.on_chip else driver.Plan("staged", images=2)
        for p in plans
    )


def bytes_of(problem: Problem, plans: tuple[driver.Plan, driver.Plan]) -> list[int]:
    inputs = {name: None if t is None else t.detach() for name, t in problem.inputs.items()}
    x, parameters = inputs["x"], [inputs[name] for name in ("w1", "b1", "w2", "b2", "ws", "bs")]
    _, saved, index = driver.forward(x, *parameters, None, False, plan=plans[0])
    counts = [counted()]
    driver.backward(problem.dy, x, None, saved, index, *parameters, False, plan=plans[1])
    return [*counts, counted()]


def counted() -> int:
    return sum(buffer.distinct for launch in driver.traffic() for buffer in launch.buffers.values())


def eager_bytes(problem: Problem) -> list[int]:
    with EagerBytes() as forward, torch.no_grad():
        reference.cbam(**problem.inputs)
    with EagerBytes() as both:
        problem.run(reference.cbam)
    return [forward.bytes, both.bytes - forward.bytes]
