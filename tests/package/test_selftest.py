"""python -m cbam_fused selftest, on the CPU: its checks, and that they detect errors."""

import json
import sys

import pytest
import torch

from cbam_fused import __main__, functional, selftest


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(selftest, "QUICK", [(64, 5, 4)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


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
    printed = capsys.readouterr().out
    assert "24 checks, 0 failed" in printed


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
    checks = list(selftest.check([("cpu", "cpu")], [(8, 5, 4)], []))
    assert not any(c["found"]["same bits again"] or c["passed"] for c in checks)


def fails_on_float16(error):
    right = functional.cbam

    def cbam(x, **rest):
        if x.dtype == torch.float16:
            raise error
        return right(x, **rest)

    return cbam


def test_a_backend_that_raises_fails_its_checks_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(functional, "cbam", fails_on_float16(ValueError("out of registers\nlong explanation")))
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
    assert [c["passed"] for c in report["checks"]] == [True] * 4 and not report["finished"]


def test_a_file_that_cannot_be_written_is_refused_before_the_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cbam_fused", "selftest", "--out", str(tmp_path / "missing" / "report.json")])
    with pytest.raises(SystemExit):
        __main__.main()
    told = capsys.readouterr()
    assert "argument --out: [Errno 2] No such file or directory" in told.err and told.out == ""


def test_a_backend_that_is_not_here_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="parts must be of cpu, got cuda"):
        selftest.run(tmp_path / "report.json", quick=True, parts=["cpu", "cuda"])
    assert not (tmp_path / "report.json").exists()


def test_a_finished_report_is_replaced_and_an_unfinished_one_gone_on_with(tmp_path, capsys):
    out = tmp_path / "report.json"
    for _ in range(2):
        assert selftest.run(out, maps=[(64, 5, 4)]) == 0
    report = json.loads(out.read_text())
    assert len(report["checks"]) == 24 and "earlier" not in capsys.readouterr().out
    out.write_text(json.dumps(report | {"checks": report["checks"][:20], "finished": False}))
    assert selftest.run(out, maps=[(64, 5, 4)]) == 0
    assert json.loads(out.read_text())["checks"][:20] == report["checks"][:20]
    assert capsys.readouterr().out.count("(earlier)") == 20
