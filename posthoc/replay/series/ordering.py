"""Whether a series lies in another order than that of its training: in that of its names as texts, 1, 10, 11, 2."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from posthoc.replay.order import Checkpoint
from posthoc.replay.series.averages import length
from posthoc.replay.series.geometry import Geometry
from posthoc.replay.series.records import Finding, Kind, Severity

SHORTER = 0.25
"""By so much in its logarithm the way through all is shorter in the order in which a series was trained."""


def order_of_texts(geometry: Geometry, checkpoints: Sequence[Checkpoint]) -> tuple[Finding, list[int]] | None:
    """What is wrong, and the rows in the order of the training, where numbers were given in the order of others as texts.

    evidence: "of k" is whose weights the k-th of the finding's checkpoints holds, as a row.
    """
    here = length(geometry.distances, range(len(geometry.rows)))
    places = {row: place for place, row in enumerate(geometry.rows)}
    best: tuple[float, list[int]] = (math.inf, [])
    for order in _orders(checkpoints):
        way = length(geometry.distances, [places[row] for row in order if row in places])
        best = min(best, (way, order))
    way, order = best
    if not here > 0 or way >= here * math.exp(-SHORTER):
        return None
    wrong = {row: place for place, row in enumerate(order) if row != place}
    rows = tuple(sorted(wrong))
    of = {f"of {k}": float(wrong[row]) for k, row in enumerate(rows)}
    evidence = {"shorter": math.log(here / max(way, 1e-30)), **of}
    return Finding(Kind.ORDER, Severity.ERROR, rows, (), evidence), order


def _orders(checkpoints: Sequence[Checkpoint]) -> Iterator[list[int]]:
    """Rows in the order of the training, if they were numbered in that of texts, or the other way round."""
    labels = [c.step if c.epoch is None else c.epoch for c in checkpoints]
    count = len(checkpoints)
    for numbers in (labels, range(count), range(1, count + 1)):
        texts = sorted(range(count), key=lambda k: str(numbers[k]))
        back = [int(k) for k in np.argsort(texts)]
        if texts != back or texts != list(range(count)):
            yield from (back, texts)


def reordered(geometry: Geometry, order: Sequence[int]) -> Geometry:
    """The same checkpoints in another order of their rows."""
    places = {row: place for place, row in enumerate(geometry.rows)}
    rows = [row for row in order if row in places]
    at = [places[row] for row in rows]
    both = np.ix_(at, at)
    return replace(
        geometry, rows=tuple(rows), products=geometry.products[both], cosines=geometry.cosines[both], norms=geometry.norms[at],
        groups={group: of[both] for group, of in geometry.groups.items()},
    )  # fmt: skip
