"""For interruptible runs: ``pytest --minutes 5 --record FILE`` skips the tests that FILE records.

FILE has JSON lines: first the facts that the outcomes depend on, then one line per test, written when it ends.
"""

import json
import signal
from pathlib import Path

import pytest

from cbam_fused import info, resume


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="time limit; it may interrupt a test")
    parser.addoption("--record", type=Path, help="write each outcome to this file, and skip the tests that it records")


@pytest.hookimpl(tryfirst=True)  # bench/conftest.py reads config.earlier
def pytest_configure(config):
    minutes, path = config.getoption("--minutes"), config.getoption("--record")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise pytest.UsageError(f"--minutes must be more than 0, got {minutes}")
    config.earlier = [] if path is None else _read(path)  # the lines of earlier runs
    if minutes is not None or path is not None:
        signal.signal(signal.SIGTERM, lambda *_: pytest.exit("SIGTERM", pytest.ExitCode.INTERRUPTED))
    if minutes is not None:
        code = pytest.ExitCode.OK
        signal.signal(signal.SIGALRM, lambda *_: pytest.exit(f"the {minutes:g} minutes are over", code))
        signal.setitimer(signal.ITIMER_REAL, 60 * minutes)


def _read(path: Path) -> list[dict]:
    """The tests in the record, which is created if missing; an incomplete line is removed."""
    facts = info.facts() | {"code": resume.code()}
    wanted = {name: facts[name] for name in resume.COMPARED}
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        found = [json.loads(line) for line in lines]
    except ValueError:
        raise pytest.UsageError(f"{path} must be a record of outcomes, or not exist") from None
    if found and found[0] != wanted:
        raise pytest.UsageError(f"{path} has outcomes of {found[0]}, not of {wanted}; remove it or name another file")
    path.write_text("".join(f"{line}\n" for line in lines or [json.dumps(wanted)]))
    return found[1:]


def pytest_collection_modifyitems(config, items):
    ran = {line["test"] for line in config.earlier}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in ran])
    items[:] = [item for item in items if item.nodeid not in ran]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    path = item.config.getoption("--record")
    # A test that passed or failed is a "call"; set-up and tear-down count if they fail or skip.
    if path is not None and (report.when == "call" or report.outcome != "passed"):
        line = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        with path.open("a") as file:
            file.write(json.dumps(line | {"properties": dict(item.user_properties)}) + "\n")
    return report


def pytest_sessionfinish(session):
    """Failures of an earlier run, and failures before the time limit, count in this run."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    earlier = session.config.earlier
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and earlier:
        session.exitstatus = pytest.ExitCode.OK
    failed = session.testsfailed or any(line["outcome"] == "failed" for line in earlier)
    if session.exitstatus == pytest.ExitCode.OK and failed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if config.earlier:
        terminalreporter.write_line(f"{len(config.earlier)} outcomes are of earlier runs")
    for line in config.earlier:
        if line["outcome"] == "failed":
            terminalreporter.write_line(f"FAILED earlier: {line['test']}")
