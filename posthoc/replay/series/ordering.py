"""Whether a series lies in another order than that of its training: in that of its names as texts (1, 10, 11, 2), or in any."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from posthoc.replay.order import Checkpoint
from posthoc.replay.series.averages import length
from posthoc.replay.series.geometry import Distances, Geometry
from posthoc.replay.series.records import Finding, Kind, Severity

SHORTER = 0.25
"""By so much in its logarithm the way through all is shorter in the order in which a series was trained."""
LONGEST, ALSO_SHORTER = 4.0, 0.05
"""And by so much where no step counts for more than so many of the median step: of names as texts 0.14 or more, of other series at
most 0.01."""
MUCH_SHORTER = 1.0
"""By so much if it may be any order: with six averages among raw weights the shortest way is up to 0.66 shorter, of a series in a
random order at least 1.35 (nine kinds of runs)."""


def order_of_texts(geometry: Geometry, checkpoints: Sequence[Checkpoint]) -> tuple[Finding, list[int]] | None:
    """What is wrong, and the rows in the order of the training, where numbers were given in the order of others as texts.

    evidence: "of k" is whose weights the k-th of the finding's checkpoints holds, as a row.
    """
    places = {row: place for place, row in enumerate(geometry.rows)}
    named = _steps(geometry.distances, range(len(geometry.rows)))
    shorter, order = 0.0, list[int]()
    for other in _orders(checkpoints):
        steps = _steps(geometry.distances, [places[row] for row in other if row in places])
        longest = LONGEST * float(np.median(steps))  # else one checkpoint far from all would have its place at an end
        saved, also = (
            math.log(max(float(named.clip(max=most).sum()), 1e-30) / max(float(steps.clip(max=most).sum()), 1e-30))
            for most in (math.inf, longest)
        )
        if saved > shorter and also > ALSO_SHORTER:
            shorter, order = saved, other
    if shorter <= SHORTER:
        return None
    wrong = {row: place for place, row in enumerate(order) if row != place}
    rows = tuple(sorted(wrong))
    of = {f"of {k}": float(wrong[row]) for k, row in enumerate(rows)}
    evidence = {"shorter": shorter, **of}
    return Finding(Kind.ORDER, Severity.ERROR, rows, (), evidence), order


def order_of_ways(geometry: Geometry) -> tuple[Finding, list[int]] | None:
    """What is wrong, and the rows in the order of the training, where the shortest way through all is very much shorter.

    evidence: "after k" is after which row the k-th of the finding's checkpoints belongs.
    """
    here = length(geometry.distances, range(len(geometry.rows)))
    places = _shortest(geometry.distances)
    way = length(geometry.distances, places)
    if not here > 0 or way >= here * math.exp(-MUCH_SHORTER):
        return None
    order = [geometry.rows[place] for place in places]
    before = {order[k]: order[k - 1] for k in range(1, len(places)) if places[k] != places[k - 1] + 1}
    rows = tuple(sorted(before))
    after = {f"after {k}": float(before[row]) for k, row in enumerate(rows)}
    evidence = {"shorter": math.log(here / max(way, 1e-30)), **after}
    return Finding(Kind.ORDER, Severity.ERROR, rows, (), evidence), order


def _steps(distances: Distances, order: Sequence[int]) -> NDArray[np.float64]:
    """Distances between neighbours in an order."""
    order = list(order)
    return np.asarray(distances[order[:-1], order[1:]])


def _shortest(distances: Distances) -> list[int]:
    """Places in an order in which neither a part turned round nor one moved makes the way shorter; for the most part ascending."""
    count = len(distances)
    apart = np.zeros((count + 1, count + 1))  # with a place at no distance from any, where the way begins and ends
    apart[:count, :count] = distances
    tour = np.array([count, *range(count)])
    least = 1e-9 * distances.sum() / max(count, 1) ** 2
    while True:
        before, after = np.roll(tour, 1), np.roll(tour, -1)
        edges = apart[tour, after]
        turned = edges[:, None] + edges - apart[np.ix_(tour, tour)] - apart[np.ix_(after, after)]
        saved = apart[before, tour] + edges - apart[before, after]
        moved = saved[:, None] - apart[np.ix_(tour, tour)] - apart[np.ix_(tour, after)] + edges
        np.fill_diagonal(turned, -np.inf)
        np.fill_diagonal(moved, -np.inf)
        moved[np.arange(count + 1), np.arange(-1, count)] = -np.inf
        if max(turned.max(), moved.max()) <= least:
            break
        if turned.max() >= moved.max():
            i, j = sorted(np.unravel_index(np.argmax(turned), turned.shape))
            tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
        else:
            k, j = np.unravel_index(np.argmax(moved), moved.shape)
            place, behind = tour[k], tour[j]
            rest = [other for other in tour if other != place]
            rest.insert(rest.index(behind) + 1, place)
            tour = np.array(rest)
    start = int(np.flatnonzero(tour == count)[0])
    order = [int(place) for place in np.roll(tour, -start)[1:]]
    return order if np.corrcoef(order, range(count))[0, 1] >= 0 else order[::-1]


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
