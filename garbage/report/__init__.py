"""The report of a run: metrics.py computes, plots.py draws, write.py writes report.html."""
