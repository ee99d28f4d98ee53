"""The programs for a few minutes on a GPU resume after a signal or --minutes; on a fake GPU."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cbam_fused import resume, selftest

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
