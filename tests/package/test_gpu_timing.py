"""The times of a GPU are correct: of graphs, steps and profiles; on a fake GPU."""

import statistics
import time

import pytest
import torch

import bench.profile
from bench import gpu, networks, timing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tensors_in_turn_do_not_fit_into_l2(small_gpu):
    l2 = torch.cuda.get_device_properties().L2_cache_size
    for count in (10, 1000, l2):
        x = torch.zeros(count, device="cuda")
        made = timing.copies(x, x)
        assert len(made) >= 2 and len(made) * x.nbytes >= 3 * l2
        assert len({t.data_ptr() for pair in made for t in pair}) == 2 * len(made)


def test_a_call_is_timed_by_many_between_two_events(small_gpu, monkeypatch):
    """Each graph has GRAPH_CALLS calls of at least 5 ms, in turn, and what it returns is kept for a round of them."""
    called, alive = [], set()

    class Result(torch.nn.Parameter):
        def __del__(self):
            alive.discard(id(self))

    def call(i):
        time.sleep(0.005)
        called.append(i)
        result = Result(torch.zeros(1))
        alive.add(id(result))
        assert len(alive) <= 2 * 3 + 1  # of the captured round, and of a replay
        return None

    monkeypatch.setattr(timing, "GRAPH_CALLS", 4)
    seconds = timing.graph_seconds([lambda i=i: call(i) for i in range(3)])
    assert 0.005 <= seconds < 0.02
    assert called == [0, 1, 2] * (len(called) // 3) and len(called) % 6 == 0


def test_no_step_begins_on_an_idle_gpu(small_gpu):
    """Of 1 + 1 + STEPS steps the last ones lie between the events, and only the first follows a synchronisation."""
    log = []

    class Logged(torch.cuda.Event):
        def record(self, stream=None):
            super().record(stream)
            log.append("event")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", Logged)
        patch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
        seconds, host = timing.step_seconds(lambda: (log.append("step"), time.sleep(0.01)), "cuda")
    assert log == ["synchronize", "step", "step", "event", *["step"] * timing.STEPS, "event"]
    assert 0.01 <= seconds < 0.05 and 0.01 <= host < 0.05  # a step of the ten, on a busy machine too


def test_a_profile_names_kernels_and_gaps():
    """In microseconds: a 0-10, b 10-20 under a longer c 5-25, 5 idle, a 30-40, 60 idle, b 100-101."""
    kernels = [("b", 10, 20), ("a", 0, 10), ("c", 5, 25), ("a", 30, 40), ("b", 100, 101)]
    found = bench.profile.summary([(n, float(s), float(e)) for n, s, e in kernels], steps=1)
    assert found["kernels"] == 5 and found["busy ms"] == 0.036 and found["idle ms"] == 0.065
    assert found["longest gaps"] == [{"us": 60, "after": "a", "before": "b"}, {"us": 5, "after": "c", "before": "a"}]
    assert [(k["name"], k["ms"], k["calls"]) for k in found["largest kernels"]] == [
        *(("a", 0.02, 2), ("c", 0.02, 1), ("b", 0.011, 2)),
    ]


def test_the_steps_train(small_gpu, monkeypatch):
    """Autocast keeps a weight that it has cast: in one region around all steps, each would have the first weights."""
    kept = []

    class Network(torch.nn.Linear):
        def forward(self, images):
            logits = super().forward(images.flatten(1))
            kept.append(logits.detach())
            return logits

    monkeypatch.setattr(networks, "build", lambda *_: Network(3 * 8 * 8, networks.CLASSES).to("cuda"))
    found = {}
    gpu.training_step(found, "fused")
    assert not torch.equal(kept[0], kept[-1]) and statistics.median(found["ms"].values()) > 0
