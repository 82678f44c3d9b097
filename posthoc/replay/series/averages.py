"""Which checkpoints lie among those before them, where weights that train move on: averages, and what was swapped."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from posthoc.replay.series.geometry import Distances, Geometry
from posthoc.replay.series.records import Finding, Kind, Severity

AVERAGED = 0.8
"""An average is nearer than this to the best average of those before it, in distances from the nearest of them, and
in units of what is usual: of weights that train the nearest is the last, and no average of them is nearer."""
BEFORE = 12
"""Of so many checkpoints before."""
REACH = 4
"""So far apart two are looked for that were exchanged, where the way itself does not show them."""
EARLIEST = 2
"""The first two have none before them of which they could be averages."""
ONWARD = 0.9
"""Two that were swapped are no averages of those before them once they are exchanged."""
BULGE = 0.6
"""And the logarithm of the step behind them exceeds the mean of those beside it by no more than that."""


def from_average(products: NDArray[np.float64], place: int, others: Sequence[int]) -> float:
    """Distance of a point from the nearest average, with weights that are not negative, of others."""
    if not others:
        return float("inf")
    chosen = list(others)
    centred = products - products[place][None] - products[:, place][:, None] + products[place, place]
    inner = centred[np.ix_(chosen, chosen)]  # of the others as seen from the point, which is the origin
    values, vectors = np.linalg.eigh(inner)
    root = vectors * np.sqrt(np.maximum(values, 0))
    heavy = 1e3 * max(float(np.sqrt(np.max(values))), 1e-30)  # weights that sum to 1
    weights, _ = nnls(np.vstack([root.T, np.full(len(chosen), heavy)]), np.append(np.zeros(len(values)), heavy))
    return float(np.sqrt(max(weights @ inner @ weights, 0.0)))


def nearness(products: NDArray[np.float64], distances: Distances, order: Sequence[int], k: int) -> float:
    """Distance of the k-th of an order from the best average of those before it, in distances from their nearest.

    1 where a training moves on, whatever its rate; below for averages, and for what comes too late.
    """
    place, before = order[k], list(order[max(0, k - BEFORE) : k])
    if len(before) < EARLIEST:
        return 1.0
    nearest = float(np.min(distances[before, place]))
    return from_average(products, place, before) / nearest if nearest > 0 else 1.0


def order_without_averages(geometry: Geometry, order: Sequence[int], findings: list[Finding]) -> list[int]:
    """The order without averages, and with what was swapped exchanged; both are named, the clearest first.

    What lies among those before it comes too late, where an exchange of two explains that, else it is an average.
    """
    left, distances = list(order), geometry.distances
    while True:
        near = np.array([nearness(geometry.products, distances, left, k) for k in range(len(left))])
        usual = usual_nearness(near)
        likely = [k for k in range(EARLIEST, len(left)) if near[k] < AVERAGED * usual]
        if not likely:
            return left
        k = min(likely, key=lambda k: near[k])
        pairs = [
            (i, j)
            for i in range(max(0, k - REACH), k + 1)
            for j in range(max(k, i + 1), min(len(left), k + REACH + 1))
            if moves_on(geometry, left, i, j, usual)
        ]
        if pairs:
            i, j = min(pairs, key=lambda pair: length(distances, exchanged(left, *pair)))
            other = exchanged(left, i, j)
            shorter = float(np.log(length(distances, left) / max(length(distances, other), 1e-30)))
            findings.append(Finding(Kind.SWAPPED, Severity.ERROR, (left[j], left[i]), (), {"shorter": shorter}))
            left = other
        else:
            evidence = {"average": float(near[k]), "usual": usual}
            findings.append(Finding(Kind.AVERAGE, Severity.ERROR, (left.pop(k),), (), evidence))


def usual_nearness(near: NDArray[np.float64]) -> float:
    """What is usual: 1 of a training that goes anywhere, less where weights scatter about a point."""
    return max(float(np.median(near[EARLIEST:])), 1e-9) if len(near) > EARLIEST else 1.0


def exchanged(order: Sequence[int], i: int, j: int) -> list[int]:
    """The order with two places exchanged."""
    other = list(order)
    other[i], other[j] = other[j], other[i]
    return other


def length(distances: Distances, order: Sequence[int]) -> float:
    """Of the way through all."""
    return float(distances[list(order[:-1]), list(order[1:])].sum())


def moves_on(geometry: Geometry, order: Sequence[int], i: int, j: int, usual: float) -> bool:
    """Whether the way is shorter with two exchanged, all between move on from those before them, and no step bulges.

    An average put before its neighbour can make a way shorter, too, but lies among those before it there as well, or
    leaves a step behind it that is as long as two.
    """
    distances, other = geometry.distances, exchanged(order, i, j)
    if length(distances, other) >= length(distances, order):
        return False
    if min(nearness(geometry.products, distances, other, k) for k in range(i, j + 1)) < ONWARD * usual:
        return False
    steps = np.log(np.maximum(distances[other[:-1], other[1:]], 1e-30))
    return j + 1 >= len(steps) or bool(steps[j] - (steps[j - 1] + steps[j + 1]) / 2 <= BULGE)
