"""One module in several Python threads, in forked processes, and interrupted."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cbam_fused import CBAM

ROOT = Path(__file__).parents[2]
THREADS = 8


def step(module: CBAM, x: torch.Tensor) -> list[torch.Tensor]:
    """y and the gradients of a loss, without touching the .grad that all threads share."""
    x = x.detach().requires_grad_()
    y = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("shape", [(3, 32, 9, 7), (1, 64, 40, 40)], ids=["images", "parts of an image"])
@pytest.mark.parametrize("variant", ["tutorial", "official"])
def test_eight_threads_share_a_module(variant, shape):
    """All have the bits of one thread, and none waits forever."""
    torch.manual_seed(0)
    module = CBAM(shape[1], variant=variant).eval()
    inputs = [torch.randn(shape).relu() for _ in range(THREADS)]
    expected = [step(module, x) for x in inputs]
    barrier = threading.Barrier(THREADS)

    def work(x):
        barrier.wait()
        return [step(module, x) for _ in range(3)]

    with ThreadPoolExecutor(THREADS) as pool:
        for wanted, repetitions in zip(expected, pool.map(work, inputs), strict=True):
            for got in repetitions:
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_backward_in_another_thread():
    module = CBAM(32)
    x = torch.randn(2, 32, 5, 5, requires_grad=True)
    y = module(x)
    with ThreadPoolExecutor(1) as pool:
        (dx,) = pool.submit(torch.autograd.grad, y.sum(), x).result()
    assert torch.equal(dx, torch.autograd.grad(module(x).sum(), x)[0])


def python(code: str) -> str:
    """The output of a new interpreter, which must end within a minute."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


USE = """
import os, random, signal, threading, torch
from cbam_fused import CBAM
torch.set_num_threads(4)
torch.manual_seed(0)
module, x = CBAM(32), torch.randn(6, 32, 12, 12)

def step():
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()])]

def same(a, b):
    return all(torch.equal(s, t) for s, t in zip(a, b, strict=True))

before = step()
"""


def test_forked_after_use():
    """Like workers of a DataLoader: from a process that has used the kernels in several threads."""
    code = """
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        os._exit(0 if same(step(), before) else 1)
    children.append(pid)
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

class Attended(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, i):
        with torch.no_grad():
            return module(x[i : i + 1])[0]

loader = torch.utils.data.DataLoader(Attended(), batch_size=3, num_workers=2, multiprocessing_context="fork")
print(statuses, torch.equal(torch.cat(list(loader)), before[0]), same(step(), before))
"""
    assert python(USE + code) == "[0, 0, 0] True True\n"


def test_interrupted_again_and_again():
    """Ctrl-C, or another signal whose handler uses the module, during training: the next step has the same bits."""
    code = """
def timer(signal_number):
    return threading.Timer(0.001 * random.randint(0, 6), os.kill, (os.getpid(), signal_number))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have this process ignore it
interrupts = 0
for _ in range(10):
    interrupt = timer(signal.SIGINT)
    try:
        interrupt.start()
        while True:
            step()
    except KeyboardInterrupt:
        interrupts += 1
    interrupt.join()
    assert same(step(), before)

results = []
signal.signal(signal.SIGUSR1, lambda *_: results.append(module(x)))
for _ in range(10):
    alarm = timer(signal.SIGUSR1)
    alarm.start()
    while alarm.is_alive():
        assert same(step(), before)
    alarm.join()
print(interrupts, len(results), all(torch.equal(y, before[0]) for y in results))
"""
    assert python(USE + code) == "10 10 True\n"
