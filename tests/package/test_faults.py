"""A change of a line that tools/faults.py names must change the fault, too: seeding them all takes an hour."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_is_of_a_line_that_occurs_once():
    faults = [fault for area in runpy.run_path(str(ROOT / "tools" / "faults.py"))["FAULTS"].values() for fault in area]
    assert len(set(faults)) == len(faults) > 60
    for fault in faults:
        assert (ROOT / fault.file).read_text().count(fault.old) == 1, fault
