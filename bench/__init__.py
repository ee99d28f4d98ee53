"""Benchmarks: ``pytest bench/``, or ``pytest bench/ --quick`` for a subset in less than two minutes.

cases.py has the cases, gate.py checks their results, timing.py measures time and memory.py memory; networks.py
measures whole networks. gpu.py and profile.py measure a GPU: ``python -m bench.gpu FILE``, or ``make gpu`` for ten
minutes of measurements and tests. conftest.py collects the results in a JSON file and prints the tables of tables.py.
``python -m bench.report FILE`` writes docs/results/benchmarks.md and its plots (plots.py) from that file.
"""

import sys
from pathlib import Path

# The problems and the tolerance are those of the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
