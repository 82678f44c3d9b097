"""To which of several places equal weights belong: there the way through the checkpoints beside is shortest."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 5
"""Checkpoints from which something can be said."""
CLEAR = 0.25
"""By so many typical steps the way is longer through the wrong place, where it can be told which is wrong."""
BESIDE = 2
"""Checkpoints on either side of a place whose steps are its typical ones."""


@dataclass(frozen=True)
class Fit:
    """span: the place where they fit best; longer: by how much the way through the next best is longer, in the steps
    between the checkpoints beside."""

    span: int
    longer: float

    @property
    def is_clear(self) -> bool:
        return self.longer > CLEAR


def consecutive(rows: Sequence[int]) -> list[list[int]]:
    """Ascending rows cut where they are not one behind the other.

    >>> consecutive([0, 1, 5])
    [[0, 1], [5]]
    """
    runs = itertools.groupby(enumerate(rows), key=lambda item: item[1] - item[0])
    return [[row for _, row in run] for _, run in runs]


def best_fit(distances: NDArray[np.float64], spans: Sequence[Sequence[int]], rest: Sequence[int]) -> Fit:
    """Which of two or more spans of rows, all of the same weights, lies on the way through the rest.

    distances [R, R] of rows in the order of the training.

    >>> steps = np.array([0, 1, 2, 3, 2, 5, 6, 7.0])  # the third checkpoint once more as the fifth
    >>> best_fit(np.abs(steps[:, None] - steps), [[2], [4]], [0, 1, 3, 5, 6, 7])
    Fit(span=0, longer=1.0)
    """
    ways = [_way(distances, sorted([*rest, *span])) for span in spans]
    first, second = np.argsort(ways, kind="stable")[:2]
    steps = [step for span in spans for step in _steps_beside(distances, rest, span)]
    typical = float(np.median(steps)) if steps else 0.0
    return Fit(int(first), float(ways[second] - ways[first]) / typical if typical > 0 else 0.0)


def beside(rest: Sequence[int], span: Sequence[int]) -> list[int]:
    """The rows of the rest on both sides of a span by which it is judged."""
    before, after = [k for k in rest if k < span[0]], [k for k in rest if k > span[-1]]
    return [*before[-BESIDE:], *after[:BESIDE]]


def _way(distances: NDArray[np.float64], order: Sequence[int]) -> float:
    return float(sum(distances[a, b] for a, b in itertools.pairwise(order)))


def _steps_beside(distances: NDArray[np.float64], rest: Sequence[int], span: Sequence[int]) -> list[float]:
    """The steps of the rest on both sides of a span and over it."""
    return [float(distances[a, b]) for a, b in itertools.pairwise(beside(rest, span))]
