"""What CBAM costs: ``pytest bench/``, or ``pytest bench/ --quick`` for a subset in less than two minutes.

cases.py says what is measured, gate.py whether its results are right, timing.py how long it takes, memory.py what it
keeps; networks.py does the same for whole networks, and gpu.py and profile.py for a GPU by itself: ``python -m
bench.gpu FILE``, or ``make gpu`` for all that ten minutes on one can tell. conftest.py collects the results into a
JSON file and prints tables.py's tables; ``python -m bench.report FILE`` makes docs/results/benchmarks.md and its plots
(plots.py) from that file.
"""

import sys
from pathlib import Path

# The problems and the rule by which results are right are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
