"""What the CUDA kernels would do on GPUs that need not be here: plans of csrc/cuda/plan.cpp."""

from emulation import driver

# Major compute capability, multiprocessors, L2 in MB, memory in GB/s, shared memory of a block in KB, largest cluster
DEVICES = {
    "A100": (8, 108, 40, 2039, 163, 1),
    "L4": (8, 58, 48, 300, 99, 1),
    "RTX 4090": (8, 128, 72, 1008, 99, 1),
    "H100": (9, 132, 50, 3352, 227, 16),
    "H200": (9, 132, 50, 4800, 227, 16),
    "B200": (10, 148, 126, 8000, 227, 16),
    "RTX 5090": (12, 170, 96, 1792, 99, 8),
}


def device(name: str):
    major, multiprocessors, l2, bandwidth, shared, cluster = DEVICES[name]
    kind = driver.module("plain").Device
    return kind(major, multiprocessors, l2 << 20, bandwidth * 1000, shared << 10, cluster)


def problem(N: int, C: int, side: int, dtype: str = "f16", channels_last: bool = False):
    p = driver.module("plain").Problem()
    p.dtype = getattr(driver.module("plain").Dtype, dtype)
    p.channels_last = channels_last
    p.N, p.C, p.H, p.W = N, C, side, side
    p.R, p.k = C // 16, 7
    p.x = p.y = p.dy = p.dx = 1 << 20
    return p


def plans(p, name: str, wanted: str | None = None):
    """What forward and backward do: blocks of an image, or images of a staged group."""
    module = driver.module("plain")
    found = (module.plan_forward(p, device(name), wanted), module.plan_backward(p, device(name), wanted))
    return tuple(f"{f.images} images" if f.schedule == module.Schedule.staged else f.cluster for f in found)
