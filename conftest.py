"""For runs that may be ended at any moment: ``pytest --minutes 5 --record FILE`` leaves out what FILE says has run.

FILE has JSON lines: first what the outcomes depend on, then one for each test that has run, written when it ended.
"""

import json
import signal
from pathlib import Path

import pytest

from cbam_fused import info, resume


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="stop after so many, in the middle of a test")
    parser.addoption("--record", type=Path, help="write each outcome to this file, and leave out what it says has run")


@pytest.hookimpl(tryfirst=True)  # bench/conftest.py asks for what is earlier
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
    """The tests in the record, which is begun if it is not there; a line that was not finished is cut off."""
    facts = info.facts() | {"code": resume.code()}
    wanted = {name: facts[name] for name in resume.COMPARED}
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    try:
        found = [json.loads(line) for line in lines]
    except ValueError:
        raise pytest.UsageError(f"{path} must be a record of outcomes, or not exist") from None
    if found and found[0] != wanted:
        raise pytest.UsageError(f"{path} has other outcomes, of {found[0]}, not {wanted}; remove it, or name another")
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
    # A test that passed or failed is a "call"; what comes before or after one counts where it fails or skips.
    if path is not None and (report.when == "call" or report.outcome != "passed"):
        line = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        with path.open("a") as file:
            file.write(json.dumps(line | {"properties": dict(item.user_properties)}) + "\n")
    return report


def pytest_sessionfinish(session):
    """A failure of an earlier run is one of this run too, and so is one before its time was over."""
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
