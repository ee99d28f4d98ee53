"""What a finished run shows: metrics.py computes, plots.py draws, write.py makes report.html."""
