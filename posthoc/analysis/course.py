"""The course of a score or a loss over a run: where it began, where it was best, and from when on it stood still."""

from dataclasses import dataclass

import numpy as np

from posthoc.analysis.arrays import FloatArray

STANDS = 0.05
"""Of the way from the first value to the best: within so much of the best a course stands still."""
LEAST = 3
"""Checkpoints that make a plateau."""


@dataclass(frozen=True)
class Course:
    """Places among the checkpoints [E]: of the first and the last finite value, and of the best; plateau: from which on
    values stay within `STANDS` of the best, None where they do not, or for fewer than `LEAST` checkpoints."""

    first: int
    last: int
    best: int
    plateau: int | None


def course(values: FloatArray, lower_is_better: bool = False) -> Course | None:
    """The course of values [E], those that are not finite left out; None where all are.

    >>> course(np.array([np.nan, 0.1, 0.5, 0.89, 0.9, 0.88]))
    Course(first=1, last=5, best=4, plateau=3)
    >>> course(np.array([0.1, 0.9, 0.4, 0.3])).plateau is None
    True
    """
    rows = np.flatnonzero(np.isfinite(values))
    if not len(rows):
        return None
    gain = -values[rows] if lower_is_better else values[rows]
    best, stands = int(gain.argmax()), stands_from(gain)
    plateau = best > 0 and 0 < stands <= len(rows) - LEAST  # where it never became better there is none
    return Course(int(rows[0]), int(rows[-1]), int(rows[best]), int(rows[stands]) if plateau else None)


def stands_from(gain: FloatArray) -> int:
    """From which of the values [n] on, of which more is better, none is further than `STANDS` from the best; the last at the latest.

    >>> stands_from(np.array([0.1, 0.5, 0.89, 0.9, 0.88])), stands_from(np.array([0.1, 0.9, 0.4]))
    (2, 2)
    """
    below = np.flatnonzero(gain < gain.max() - STANDS * (gain.max() - gain[0]))
    return min(int(below[-1]) + 1, len(gain) - 1) if len(below) else 0
