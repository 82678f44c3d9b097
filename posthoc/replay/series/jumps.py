"""Sudden jumps of the norm of all weights from one checkpoint to the next, as a spike of the loss can leave them."""

from collections.abc import Sequence

import numpy as np

from posthoc.replay.series.geometry import Geometry, excess, scale
from posthoc.replay.series.reading import Statistics
from posthoc.replay.series.records import Finding, Kind, Severity

OUTLIER, LEAST = 8.0, 0.2
"""A step of the logarithm of the norm is a jump if it is beyond those next to it by so many robust standard deviations, and so much."""
SUDDEN, BEFORE = 3.0, 3
"""It is so many times as large as each of so many steps before it: early in training all are large, and they fall."""


def norm_jumps(series: Statistics, geometry: Geometry, others: Sequence[Finding]) -> list[Finding]:
    """A note for every step in which the norm jumps, unless another fault at either end explains it."""
    blamed = {row for finding in others if finding.severity > Severity.NOTE for row in finding.checkpoints}
    rows = [row for row in geometry.rows if row not in blamed]
    weights = {name for names in geometry.tensors.values() for name in names}
    squares = series.squares[np.ix_(rows, [t for t, name in enumerate(series.tensors) if name in weights])].sum(1)
    steps = np.diff(0.5 * np.log(np.maximum(squares, 1e-30)))
    over = excess(steps)
    limit = max(LEAST, OUTLIER * scale(over))
    return [
        Finding(Kind.NORM_JUMP, Severity.NOTE, (rows[k + 1],), (), {"factor": float(np.exp(steps[k]))})
        for k in range(BEFORE, len(steps))
        if abs(over[k]) > limit
        and abs(steps[k]) > SUDDEN * np.max(np.abs(steps[k - BEFORE : k]))
        and not blamed & set(range(rows[k], rows[k + 1]))
    ]
