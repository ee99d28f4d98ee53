"""What the CUDA kernels would do on GPUs that need not be here: plans of csrc/cuda/plan.cpp."""

from emulation import driver

# Multiprocessors, L2 in MB, shared memory of a block in KB, whether blocks may form clusters
DEVICES = {
    "T4": (40, 4, 64, False),
    "A100": (108, 40, 163, False),
    "L4": (58, 48, 99, False),
    "RTX 4090": (128, 72, 99, False),
    "H100": (132, 50, 227, True),
    "H200": (132, 50, 227, True),
    "B200": (148, 126, 227, True),
    "RTX 5090": (170, 96, 99, True),
}


def device(name: str):
    multiprocessors, l2, shared, clusters = DEVICES[name]
    return driver.module("plain").Device(multiprocessors, l2 << 20, shared << 10, clusters)


def problem(N: int, C: int, side: int, dtype: str = "f16", channels_last: bool = False):
    p = driver.module("plain").Problem()
    p.dtype = getattr(driver.module("plain").Dtype, dtype)
    p.channels_last = channels_last
    p.N, p.C, p.H, p.W = N, C, side, side
    p.R, p.k = C // 16, 7
    p.x = p.y = p.dy = p.dx = 1 << 20
    return p


def plans(p, name: str, wanted: str | None = None):
    """What forward and backward do: the name of a schedule, or blocks of an image on chip."""
    module = driver.module("plain")
    found = (module.plan_forward(p, device(name), wanted), module.plan_backward(p, device(name), wanted))
    return tuple(f.cluster if f.schedule == module.Schedule.on_chip else f.schedule.name for f in found)
