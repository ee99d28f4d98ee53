"""The programs for a few minutes on a GPU, on a fake GPU: each of their lines runs, they resume after a signal or
--minutes, and their times are correct.
"""

import dis
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from fake_gpu import FakeGpu

import bench.profile
import cbam_fused
from bench import cases, gate, gpu, networks, timing
from cbam_fused import reference, resume, selftest
from cbam_fused.ops import registry

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(selftest.__file__).parents[1]
BENCH = """
import sys
from fake_gpu import FakeGpu
with FakeGpu():
    from bench import gpu, timing
    gpu.BATCH = 4
    timing.LEAST, timing.REPEATS, timing.STEPS, timing.GRAPH_CALLS = 1e-4, 1, 1, 4
    sys.argv[0] = "bench.gpu"
    sys.exit(gpu.main())
"""
SELFTEST = """
import sys
from fake_gpu import FakeGpu
with FakeGpu():
    from cbam_fused import __main__
    sys.argv[0] = "selftest"
    sys.argv.insert(1, "selftest")
    sys.exit(__main__.main())
"""


def start(program: str, *arguments: object) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1] / "support")])
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def figures(path: Path) -> list[tuple]:
    rows = json.loads(path.read_text())["operators"]
    return [(*row["shape"], row["dtype"], row["layout"], name) for row in rows for name in row["microseconds"]]


def checks(path: Path) -> list[tuple]:
    return [selftest.key(c) for c in json.loads(path.read_text())["checks"]]


@pytest.mark.parametrize(
    ("program", "name", "done", "arguments", "all_of_them"),
    [
        (BENCH, "gpu.json", figures, ["--maps", "16x5x4", "32x6x6", "--parts", "copy", "cuda", "eager"], 18),
        (SELFTEST, "checks.json", checks, ["--maps", "16x5x4", "--parts", "cuda", "triton"], 48),
    ],
    ids=["bench.gpu", "selftest"],
)
def test_a_program_that_is_stopped_goes_on_from_there(program, name, done, arguments, all_of_them, tmp_path):
    out = tmp_path / name
    arguments = [out, *arguments] if program is BENCH else ["--out", out, *arguments]

    def stopped_by(number: int, figures: int) -> tuple[list[tuple], int]:
        process = start(program, *arguments)
        while process.poll() is None and (not out.exists() or not out.stat().st_size or len(done(out)) < figures):
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate()
        return done(out), process.returncode

    first, status = stopped_by(signal.SIGTERM, 3)
    assert status == 128 + signal.SIGTERM and 3 <= len(first) < all_of_them
    times = json.loads(out.read_text())
    second, status = stopped_by(signal.SIGKILL, len(first) + 2)
    assert status == -signal.SIGKILL and len(first) + 2 <= len(second) < all_of_them
    rest = start(program, *arguments)
    output, _ = rest.communicate()
    assert rest.returncode == 0, output
    last = done(out)
    assert len(last) == len(set(last)) == all_of_them and set(first) < set(second) < set(last)
    if program is BENCH:
        assert json.loads(out.read_text())["operators"][0]["microseconds"].items() >= (
            times["operators"][0]["microseconds"].items()
        )
        nothing = start(program, *arguments)
        assert nothing.communicate()[0].count("\n") == 1
    else:
        assert output.count("(earlier)") == len(second) and f"{all_of_them} checks, 0 failed" in output
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_minutes_end_a_program_in_the_middle(tmp_path):
    out = tmp_path / "checks.json"
    process = start(SELFTEST, "--out", out, "--maps", "256x28x28", "--minutes", 0.02)
    output, _ = process.communicate()
    assert process.returncode == 0 and "stopped, the same command resumes" in output
    report = json.loads(out.read_text())
    assert not report["finished"] and len(report["checks"]) < 24


TESTS = """
import time
import pytest
@pytest.mark.parametrize("i", range(6))
def test(i):
    time.sleep(1 if i == 3 and not open("now").read() else 0.01)
    assert i != 1
"""


def test_tests_go_on_from_their_record(tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "now").write_text("")

    def run(*options: str, terminate: bool = False) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--record", "record.jsonl", *options]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE)
        if terminate:
            while not (record.exists() and len(record.read_text().splitlines()) == 4):
                time.sleep(0.01)
            process.terminate()
        output, _ = process.communicate()
        return process.returncode, output

    record = tmp_path / "record.jsonl"
    status, output = run(terminate=True)
    assert status == pytest.ExitCode.INTERRUPTED and "1 failed, 2 passed" in output
    lines = record.read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines[1:]] == ["passed", "failed", "passed"]
    record.write_text(record.read_text() + '{"test": "half a li')  # as after SIGKILL
    status, output = run("--minutes", "0.01")
    assert status == pytest.ExitCode.TESTS_FAILED and "the 0.01 minutes are over" in output
    assert "FAILED earlier: test_some.py::test[1]" in output and record.read_text().splitlines() == lines
    (tmp_path / "now").write_text("yes")
    status, output = run()
    assert status == pytest.ExitCode.TESTS_FAILED and "3 passed, 3 deselected" in output
    assert [json.loads(line)["test"][-2] for line in record.read_text().splitlines()[1:]] == list("012345")
    status, output = run()
    assert status == pytest.ExitCode.TESTS_FAILED and "6 deselected" in output
    record.write_text(record.read_text().replace('"failed"', '"passed"'))
    assert run()[0] == pytest.ExitCode.OK
    record.write_text(record.read_text().replace('"code": "', '"code": "other '))
    assert run()[0] == pytest.ExitCode.USAGE_ERROR


@pytest.fixture
def small(monkeypatch):
    """A fake GPU, and sizes that a CPU measures in seconds."""
    for module, name, value in [
        *((gpu, name, value) for name, value in {"BATCH": 4, "SIDE": 8, "ROUNDS": 2}.items()),
        *((timing, name, value) for name, value in {"LEAST": 1e-4, "REPEATS": 1, "STEPS": 1}.items()),
        (timing, "GRAPH_CALLS", 4),
    ]:
        monkeypatch.setattr(module, name, value)

    def build(name, variant, example):
        cbam = [] if variant == "none" else [{"fused": cbam_fused.CBAM}.get(variant, reference.CBAM)(16)]
        head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, networks.CLASSES)]
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), *cbam, *head).to(example.device)

    monkeypatch.setattr(networks, "build", build)  # which tests/package/test_bench.py tries
    gpu.drawn.cache_clear()
    with FakeGpu() as fake:
        yield fake
    gpu.drawn.cache_clear()


def functions_of(module: types.ModuleType) -> list[types.CodeType]:
    path = Path(module.__file__)
    whole = compile(path.read_text(), str(path), "exec")
    return [c for c in whole.co_consts if isinstance(c, types.CodeType)]


def lines_of(code: types.CodeType) -> set[int]:
    found = {line for _, line in dis.findlinestarts(code) if line} - {code.co_firstlineno}
    return found.union(*(lines_of(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def not_run(call, functions: list[types.CodeType]) -> list[str]:
    """The lines of the functions that a call does not run."""
    ran: dict[str, set[int]] = {code.co_filename: set() for code in functions}

    def trace(frame, event, _):
        if frame.f_code.co_filename not in ran:
            return None
        ran[frame.f_code.co_filename].add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    left = sorted((c.co_filename, n) for c in functions for n in lines_of(c) - ran[c.co_filename])
    return [Path(name).read_text().splitlines()[n - 1].strip() for name, n in left]


def test_every_line_runs_on_the_stand_in(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8"])
    left = not_run(gpu.main, functions_of(gpu) + functions_of(bench.profile))
    assert left == [
        'parser.error(f"{options.out.parent} must be a folder that exists")',
        'parser.error(f"CUDA kernels: {missing}")',
        "parser.error(registry.triton_missing)",
        'print(f"FAILED {name}: {error}")',
        "except Exception as error:",
        'result = record.data["failed"][name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"',
        "try:",
        "torch.cuda.synchronize()",
        "record.save()",
        'raise RuntimeError(f"not timed, the results are wrong: {wrong}")',
    ]
    data = json.loads(out.read_text())
    rows = data["operators"]
    assert [(r["dtype"], r["layout"]) for r in rows] == gpu.KINDS and data["failed"] == {}
    for row in rows:
        assert row["shape"] == [4, 16, 8, 8] and [*row["microseconds"]] == [
            *("copy", "cuda", "compile, forward and both", "triton", "eager, forward and both"),
            "compile max-autotune, forward and both",
        ]
    step = data["training step"]
    for name in ("ms", "host ms", "graph ms"):
        assert set(step[name]) == {"none", "fused", "compile", "eager"} and all(t > 0 for t in step[name].values())
    assert set(step["tax %"]) == {"fused", "compile", "eager"} and set(data["profile"]) == {"fused", "none"}
    for profile in data["profile"].values():
        assert len(profile["largest kernels"]) == len(profile["longest gaps"]) == len(profile["host"]) == 10


def test_every_line_of_the_timing_runs_on_the_stand_in(small):
    """Those for a GPU; other tests cover the rounds of the CPU and the check of bandwidths."""
    names = ("event", "between", "copies", "graph_seconds", "replay_seconds", "passes", "layer_seconds", "step_seconds")
    functions = [getattr(timing, name).__code__ for name in names]
    x = torch.randn(4, 16, 8, 8, device="cuda", requires_grad=True)
    module = cases.implementations({n: torch.randn(s, device="cuda") for n, s in WEIGHTS.items()})["eager"]

    def call():
        seconds = timing.layer_seconds({"eager": module}, x, torch.randn_like(x))
        assert seconds.keys() == timing.MOVED.keys() and seconds["forward"].keys() == {"eager", "clone", "copy"}
        timing.step_seconds(lambda: module(x), "cuda")

    assert not_run(call, functions) == ["step()", "return (time.perf_counter() - start,) * 2"]


WEIGHTS = {"w1": (1, 16, 1, 1), "w2": (16, 1, 1, 1), "ws": (1, 2, 7, 7)}


@pytest.mark.parametrize("kind", selftest.KINDS)
def test_the_selftest_on_the_stand_in(small, kind, monkeypatch):
    monkeypatch.setattr(selftest, "KINDS", (kind,))
    monkeypatch.setattr(selftest, "DTYPES", (torch.float32,))
    served = [(device, name) for device in selftest.devices() for name in selftest.backends(device)]
    assert served == [("cuda", "cuda"), ("cuda", "triton"), ("cpu", "cpu")]
    for c in selftest.check(served, [(16, 5, 4)], []):
        assert c["passed"], c
        assert ("same bits from a CUDA graph" in c["found"]) == (c["backend"] != "cpu")


def test_tensors_in_turn_do_not_fit_into_l2(small):
    l2 = torch.cuda.get_device_properties().L2_cache_size
    for count in (10, 1000, l2):
        x = torch.zeros(count, device="cuda")
        made = timing.copies(x, x)
        assert len(made) >= 2 and len(made) * x.nbytes >= 3 * l2
        assert len({t.data_ptr() for pair in made for t in pair}) == 2 * len(made)


def test_a_call_is_timed_by_many_between_two_events(small, monkeypatch):
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


def test_no_step_begins_on_an_idle_gpu(small):
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


def test_what_is_wrong_is_not_timed_and_the_rest_is(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate, "disagreement", lambda *_: "dx is off")
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8", "--parts", "cuda", "copy"])
    assert gpu.main() == gpu.main() == 1
    data = json.loads(out.read_text())
    assert [[*row["microseconds"]] for row in data["operators"]] == [["copy"]] * 3
    assert [*data["failed"].values()] == ["RuntimeError: not timed, the results are wrong: dx is off"] * 3
    assert "FAILED cuda 4x16x8x8 float32 nchw: RuntimeError" in capsys.readouterr().out


def test_a_gpu_that_is_lost_ends_the_program(small, tmp_path, monkeypatch):
    def lost(*_):
        raise RuntimeError("an illegal memory access was encountered")

    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "operator", lost)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(out), "--maps", "16x8x8", "--parts", "cuda"])
    for count in (1, 2):  # it resumes after the case that lost the GPU
        with pytest.raises(RuntimeError, match="illegal memory access"):
            gpu.main()
        assert len(json.loads(out.read_text())["failed"]) == count


@pytest.mark.parametrize(
    ("folder", "cuda", "triton", "message"),
    [
        ("missing", "", "", "missing must be a folder that exists"),
        ("", "cbam_fused/_C_cuda was not built", "", "CUDA kernels: cbam_fused/_C_cuda was not built"),
        ("", "", "triton is not installed", "triton is not installed"),
    ],
)
def test_what_the_gpu_benchmark_lacks_it_says_at_once(folder, cuda, triton, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / folder / "h100.json")])
    monkeypatch.setattr(registry, "cuda_unserved", lambda device: cuda)
    monkeypatch.setattr(registry, "triton_missing", triton)
    with pytest.raises(SystemExit):
        gpu.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[1]", '{"about": 3}', '{"rows": []}'])
def test_a_file_of_something_else_is_left_alone(content, tmp_path):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(SystemExit, match="must be a file of earlier results, or not exist"):
        resume.Record(path, {"torch": "2", "GPU": "none"})
    assert path.read_text() == content


def test_results_of_another_gpu_are_not_gone_on_with(tmp_path):
    about = {"torch": "2", "GPU": "one", "platform": "here"}
    record = resume.Record(tmp_path / "file", about)
    record.save()
    assert resume.Record(tmp_path / "file", about | {"platform": "there"}).data == record.data
    with pytest.raises(SystemExit, match="has other results; remove it or name another file: GPU: one there, two here"):
        resume.Record(tmp_path / "file", about | {"GPU": "two"})
    record.data |= {"finished": True, "checks": [1]}
    record.save()
    assert "checks" not in resume.Record(tmp_path / "file", about | {"GPU": "two"}).data


@pytest.mark.parametrize(
    ("option", "value"), [("--minutes", "0"), ("--minutes", "x"), ("--maps", "3x4"), ("--maps", "0x1x1")]
)
def test_options_that_mean_nothing_are_refused(option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "file"), option, value])
    with pytest.raises(SystemExit):
        gpu.main()
    assert f"argument {option}" in capsys.readouterr().err


def test_the_steps_train(small, monkeypatch):
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


def test_make_gpu_goes_on_after_a_failure_and_ends_in_time(tmp_path, monkeypatch, capfd):
    spec = importlib.util.spec_from_file_location("make_gpu", ROOT / "tools" / "gpu.py")
    make_gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_gpu)
    for name, _, command in make_gpu.steps(sys.executable, tmp_path):
        assert name == "build" or "--minutes" not in command
    said = "import sys, time; print(sys.argv[-2:], flush=True); time.sleep(float(sys.argv[1])); sys.exit({})"
    steps = [
        ("build", 1, [sys.executable, "-c", said.format(0), "0"]),
        ("wrong", 0.5, [sys.executable, "-c", said.format(3), "0"]),
        ("slow", 0.01, [sys.executable, "-c", said.format(0), "60"]),
        ("last", 2, [sys.executable, "-c", said.format(0), "0"]),
    ]
    monkeypatch.setattr(make_gpu, "steps", lambda python, out: steps)
    monkeypatch.setattr(make_gpu, "OUT", make_gpu.ROOT / "runs" / "test_of_make_gpu")
    monkeypatch.setattr(make_gpu, "PATIENCE", 1)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--minutes", "1"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert make_gpu.main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        make_gpu.OUT.rmdir()
    told = capfd.readouterr().out
    assert "['-c', '0']" in told and "['--minutes', '0.50']" in told and "['--minutes', '0.01']" in told
    table = [line.split("  ")[0] + ":" + ("ok" if " ok " in line else "not") for line in told.splitlines()[-5:-1]]
    assert table == ["build:ok", "wrong:not", "slow:not", "last:ok"] and "slow: out of time" in told
