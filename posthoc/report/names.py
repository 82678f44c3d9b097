"""The figures by name, to be told without altair, whose import takes a second."""

MODULES = {
    "training": "training",
    "measures": "measures",
    "stability": "stability",
    "trajectory": "trajectory",
    "layers": "layers",
    "geometry": "geometry",
    "locking": "layers",
    "similarity": "layers",
    "fluctuation": "fluctuation",
    "positions": "positions",
    "weights": "weights",
    "audit": "audit",
    "comparison": "comparison",
    "runs": "runs",
    "stopping": "stopping",
}
"""Of every figure, in the order of the page, the module of `posthoc.report.figures` that has its `Kind`, by its name in capitals."""
