"""python -m cbam_fused selftest, on the CPU: what it checks and times, and that it notices what is wrong."""

import json
import sys

import pytest
import torch

from cbam_fused import __main__, functional, selftest


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(selftest, "QUICK", [(64, 5, 4)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)


def test_everything_passes_and_is_written(tmp_path, capsys):
    assert selftest.run(tmp_path / "report.json", quick=True) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["about"]["torch"] == torch.__version__ and report["finished"]
    names = ("float32", "float64", "float16", "bfloat16")
    checks = {(c["dtype"], c["layout"], c["kind"]): c for c in report["checks"]}
    assert checks.keys() == {(d, la, k) for d in names for la in ("NCHW", "NHWC") for k in selftest.KINDS}
    assert all(c["passed"] and c["backend"] == "cpu" for c in checks.values())
    found = checks["float16", "NHWC", "biases, residual and ReLU"]["found"]
    inputs = ("dx", "dw1", "dw2", "dws", "db1", "db2", "dbs", "dresidual")
    assert found.keys() == {"y", *inputs, "same bits again"}
    # None is compared with a gradient of zeros, in which nothing could be wrong.
    assert all(0 < found[name]["error"] <= found[name]["bound"] for name in ("y", *inputs) if name != "dresidual")
    assert [(t["dtype"], t["layout"]) for t in report["times"]] == [
        (d, la) for d in ("float32", "bfloat16") for la in ("NCHW", "NHWC")
    ]
    for timed in report["times"]:
        assert timed["seconds"].keys() == {"copy", "eager", "torch.compile", "cpu"}
        assert all(s > 0 for passes in timed["seconds"].values() for s in passes.values())
    printed = capsys.readouterr().out
    assert "24 checks, 0 failed" in printed and "GB/s" in printed


def test_a_wrong_gradient_fails(tmp_path, monkeypatch, capsys):
    right = functional.cbam
    monkeypatch.setattr(functional, "cbam", lambda x, **rest: right(x, **rest) + 1e-3 * (x - x.detach()))
    assert selftest.run(tmp_path / "report.json", quick=True) == 1
    checks = json.loads((tmp_path / "report.json").read_text())["checks"]
    wrong = [c for c in checks if c["dtype"] in ("float32", "float64")]
    assert len(wrong) == 12 and not any(c["passed"] for c in wrong)
    assert all(c["found"]["dx"]["error"] > c["found"]["dx"]["bound"] for c in wrong)
    assert all(c["found"]["y"]["error"] <= c["found"]["y"]["bound"] for c in wrong)
    assert "float32 NCHW plain: FAILED: dx" in capsys.readouterr().out


def test_results_that_change_from_run_to_run_fail(tmp_path, monkeypatch):
    right, calls = functional.cbam, []

    def drifts(x, **rest):
        calls.append(x)
        return right(x, **rest) * (1 + len(calls) * torch.finfo(x.dtype).eps)

    monkeypatch.setattr(functional, "cbam", drifts)
    checks = list(selftest.check([("cpu", "cpu")], [(8, 5, 4)]))
    assert not any(c["found"]["same bits again"] or c["passed"] for c in checks)


def test_what_does_not_run_is_said(monkeypatch):
    def no_compiler(**inputs):
        raise RuntimeError("no compiler\nlong explanation")

    assert selftest.time_call(no_compiler, {}, torch.zeros(1)) == {"error": "RuntimeError: no compiler"}


def fails_on_float16(error):
    right = functional.cbam

    def cbam(x, **rest):
        if x.dtype == torch.float16:
            raise error
        return right(x, **rest)

    return cbam


def test_a_backend_that_raises_fails_its_checks_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(functional, "cbam", fails_on_float16(ValueError("out of registers\nlong explanation")))
    monkeypatch.setattr(selftest, "times", lambda device, maps: iter(()))
    assert selftest.run(tmp_path / "report.json", quick=True) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    failed = [c for c in report["checks"] if not c["passed"]]
    assert [c["dtype"] for c in failed] == ["float16"] * 6 and len(report["checks"]) == 24
    assert all(c["error"] == "ValueError: out of registers\nlong explanation" for c in failed)
    assert all("test_selftest.py" in c["traceback"] for c in failed)
    assert report["finished"]
    assert "float16 NHWC plain: FAILED: ValueError: out of registers\n" in capsys.readouterr().out


def test_what_there_is_when_it_is_stopped_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(functional, "cbam", fails_on_float16(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        selftest.run(tmp_path / "report.json", quick=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["passed"] for c in report["checks"]] == [True] * 12 and not report["finished"]


def test_a_file_that_cannot_be_written_is_refused_before_the_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cbam_fused", "selftest", "--out", str(tmp_path / "missing" / "report.json")])
    with pytest.raises(SystemExit):
        __main__.main()
    told = capsys.readouterr()
    assert "argument --out: [Errno 2] No such file or directory" in told.err and told.out == ""
