"""The Triton kernels compiled for GPUs that are not here: what each needs, and what its machine code does.

python tests/support/triton_targets.py TARGET prints it as JSON. It runs as a process of its own, since a process in
which the kernels are interpreted cannot compile them.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from cbam_fused.tensors import accumulation_dtype, saved_logits
from cbam_fused.triton import gpu, operators
from cbam_fused.variants.config import Switches

SHAPE = (8, 256, 56, 56)
HIDDEN = 16
KERNEL_SIZE = 7
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Of these, every operator and switch is compiled, in bfloat16; of the others, forward and backward with both gates.
THOROUGH = ("sm_90", "gfx942")
# Switches that share no code where they can, and the gates that they are compiled with.
SWITCHES = (
    ({"ties": "even"}, ("channel", "spatial")),
    ({"ties": "even"}, ("spatial",)),
    ({"pools": ("avg",), "act": "silu", "channel_gate": "hard_sigmoid"}, ("channel",)),
    ({"pools": ("max",), "act": "gelu", "ties": "even"}, ("channel",)),
    ({"pools": ("avg",), "width": "single", "spatial_gate": "hard_sigmoid"}, ("channel", "spatial")),
    ({"combine": "mean", "ties": "even"}, ("channel", "spatial")),
    ({"gate_place": "before_sum", "act": "leaky_relu"}, ("channel",)),
    ({"gate_place": "before_sum", "width": "single"}, ("channel",)),
)
# What the large passes read of x's size, where they are given it.
READS = {
    "cbam_fwd_channel_pool": ("x",),
    "cbam_fwd_spatial_pool": ("x",),
    "cbam_fwd_apply": ("x", "residual"),
    "cbam_bwd_products": ("x", "dy", "y"),
    "cbam_bwd_map_products": ("x",),
    "cbam_bwd_input": ("dy", "x"),
}


@dataclass
class Target:
    """What compilation needs, and what a multiprocessor has: shared memory, 32-bit registers, threads.

    A block on NVIDIA GPUs can have all of the shared memory but reserved bytes, which go with every block.
    """

    gpu: GPUTarget
    shared: int
    reserved: int
    registers: int
    threads: int

    @property
    def pdl(self) -> bool:
        """Whether a launch may begin before the last one has ended."""
        return self.gpu.backend == "cuda" and self.gpu.arch >= 90


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD CDNA3 ISA, 512 VGPRs a SIMD lane.
TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 164 << 10, 1024, 65536, 2048),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 228 << 10, 1024, 65536, 2048),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 228 << 10, 1024, 65536, 2048),
    "sm_120": Target(GPUTarget("cuda", 120, 32), 100 << 10, 1024, 65536, 1536),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10, 0, 4 * 64 * 512, 2048),
}


@dataclass
class Compiled:
    """One kernel for one target.

    rest: other operators than forward and backward with both gates need it, or one gate alone, or switches.
    spilled: bytes of local memory or registers spilled; local: instructions that access local memory; wide: 16-byte
    loads; needed: how many of them the tiles of x's size take, if each thread loads its part in the widest way; waits:
    whether it waits for the launch before, and does so before it loads or stores anything.
    """

    target: str
    kernel: str
    dtype: str
    layout: str
    rest: bool
    warps: int
    registers: int
    shared: int
    spilled: int
    local: int
    wide: int
    needed: int
    occupancy: float
    waits: bool


def launches(
    target: Target, dtype: torch.dtype, channels_last: bool, options: bool = True, every_operator: bool = False
) -> list[tuple[JITFunction, tuple, dict]]:
    """Every launch of a forward and a backward with both gates: kernel, arguments, keywords. Nothing is run.

    options: with biases, residual and ReLU. every_operator: those of the other operators as well, with one gate, and
    with switches.
    """
    recorded = []

    def record(kernel, *args, grid, warmup, **kwargs):
        recorded.append((kernel, args, kwargs))

    layout = torch.channels_last if channels_last else torch.contiguous_format
    acc = accumulation_dtype(dtype)
    N, C, H, W = SHAPE
    x = torch.empty(SHAPE, dtype=dtype, memory_format=layout)
    shapes = ((HIDDEN, C), (C, HIDDEN), (1, 2, KERNEL_SIZE, KERNEL_SIZE), (HIDDEN,), (C,), (1,))
    params = [torch.empty(s, dtype=acc) if options or len(s) > 1 else None for s in shapes]
    known = {"warp_size": lambda device: target.gpu.warp_size, "pdl": lambda device: target.pdl}
    with mock.patch.object(JITFunction, "run", record), mock.patch.multiple(gpu, **known):
        operate(x, params, options)
        if every_operator:
            channel = [None if i in (2, 5) else p for i, p in enumerate(params)]
            spatial = [p if i in (2, 5) else None for i, p in enumerate(params)]
            for gates in (channel, spatial):
                operate(x, gates, options)
                mask(x, gates)
            for gates in (params, spatial):
                operate_around_norm(x, gates, options)
            for names, gates in SWITCHES:
                w1, w2, ws, b1, b2, bs = params
                if names.get("width") == "single":
                    w1, w2, b1, b2 = w1.new_empty((C, C)), None, b2, None
                chosen = [w1, w2, None, b1, b2, None] if "channel" in gates else [None] * 6
                if "spatial" in gates:
                    chosen[2], chosen[5] = ws, bs
                operate(x, chosen, options, Switches(**names).code)
    return recorded


def operate(x: torch.Tensor, params: list, options: bool, switches: int = 0) -> None:
    y, saved, index = operators.forward(x, *params, x if options else None, options, switches)
    operators.backward(x, x, y if options else None, saved, index, *params, switches)


def mask(x: torch.Tensor, params: list) -> None:
    saved, index = operators.gates_forward(x, *params, 0)
    operators.backward_from_gate_grads(None, None, None, None, x, saved, index, *params, 0)


def operate_around_norm(x: torch.Tensor, params: list, options: bool) -> None:
    saved, index = operators.gates_forward(x, *params, 0)
    s = torch.empty_like(saved_logits(saved, x))
    y = operators.apply_gates(x, saved, s, x if options else None, options, 0)
    dg, ds, masked = operators.gate_grads(x, x, y if options else None, saved, s, 0)
    operators.backward_from_gate_grads(masked if options else x, s, dg, ds, x, saved, index, *params, 0)


def compile_for(target: Target, kernel: JITFunction, args: tuple, kwargs: dict):
    """As JITFunction.run compiles it, with the specialisation of these arguments."""
    backend = make_backend(target.gpu)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*args, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(backend, kwargs, bound, specialization, options)
    return triton.compile(ASTSource(kernel, signature, constexprs, attrs), target=target.gpu, options=options.__dict__)


def nvidia(compiled) -> dict:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([tools / "cuobjdump", "--dump-resource-usage", file.name], text=True)
        sass = subprocess.check_output([tools / "nvdisasm", "-ndf", file.name], text=True, stderr=subprocess.DEVNULL)
    used = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    return {
        "registers": used["REG"],
        "spilled": used["STACK"] + used["LOCAL"],
        "local": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide": len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128\b", sass)),
        # PTX's griddepcontrol.wait.
        "waits": re.search(r"\b(?:ACQBULK|LDG?|STG?|ATOMG?|RED)\b", sass)[0] == "ACQBULK",
    }


def amd(compiled) -> dict:
    text = compiled.asm["amdgcn"]

    def value(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return {
        "registers": value("vgpr_count"),
        "spilled": value("vgpr_spill_count") + value("private_segment_fixed_size"),
        "local": len(re.findall(r"\bscratch_(?:load|store)", text)),
        "wide": len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", text)),
        "waits": False,
    }


def occupancy(target: Target, registers: int, shared: int, warps: int) -> float:
    """Share of a multiprocessor's threads that are there at a time, as registers and shared memory allow it."""
    threads = warps * target.gpu.warp_size
    granule = 8 * target.gpu.warp_size
    a_warp = -(-registers * target.gpu.warp_size // granule) * granule
    blocks = min(target.registers // (a_warp * warps), target.threads // threads)
    if shared:
        blocks = min(blocks, target.shared // (shared + target.reserved))
    return blocks * threads / target.threads


def compile_all(name: str) -> list[Compiled]:
    """Every kernel in every dtype and layout for a target; what does not depend on them, once."""
    target, results = TARGETS[name], {}
    for dtype in DTYPES:
        for channels_last in (False, True):
            for rest in (False, True) if dtype == torch.bfloat16 and name in THOROUGH else (False,):
                recorded = launches(target, dtype, channels_last, every_operator=rest)
                for kernel, args, kwargs in recorded:
                    compiled = compile_for(target, kernel, args, kwargs)
                    if compiled.hash not in results:
                        facts = describe(name, kernel, compiled, args, kwargs, dtype, channels_last)
                        results[compiled.hash] = Compiled(rest=rest, **facts)
    return list(results.values())


def describe(name: str, function: JITFunction, compiled, args: tuple, kwargs: dict, dtype, channels_last) -> dict:
    target, kernel = TARGETS[name], function.__name__
    given = {argument for argument, value in zip(function.arg_names, args, strict=False) if value is not None}
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    facts = nvidia(compiled) if target.gpu.backend == "cuda" else amd(compiled)
    if kernel in READS:
        layout = "NHWC" if channels_last else "NCHW"
        tile_bytes = kwargs["BLOCK_C"] * kwargs["BLOCK_P"] * dtype.itemsize
        needed = len(given.intersection(READS[kernel])) * tile_bytes // (warps * target.gpu.warp_size) // 16
    else:
        layout, needed = "any", 0
        dtype = accumulation_dtype(dtype)
    return facts | {
        "target": name,
        "kernel": kernel,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": layout,
        "warps": warps,
        "shared": shared,
        "needed": needed,
        "occupancy": occupancy(target, facts["registers"], shared, warps),
    }


if __name__ == "__main__":
    print(json.dumps([asdict(c) for c in compile_all(sys.argv[1])]))
