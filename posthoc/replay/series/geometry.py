"""How far checkpoints are from each other: distances and cosines of all pairs, from the numbers that were sampled.

A sample of some thousand numbers a tensor, the same of all checkpoints, gives a distance to a few percent, and ratios of
distances closer, for the same numbers are compared.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.weights import MOST_GROUPS, group_of
from posthoc.replay.series.exact import RUNNING, broken, masks, trains, weights_of
from posthoc.replay.series.reading import Statistics

BLOWN_UP = 3.0
"""Norms of so many times the median before are of a training that diverges, if what is not finite follows."""
LARGE = 256
"""A matrix of fewer numbers says little of whether two networks are related."""
Distances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Geometry:
    """Checkpoints that can be compared with each other.

    rows: theirs in the series, ascending; products: inner products [R, R] of their weights, every tensor in units of its
    typical step; groups: distances [R, R] by layer; tensors: the names in each layer; numbers: how many it has; cosines [R, R]: the median over
    large matrices, each less its mean, which of two initialisations is near 0; norms [R, T]: logarithms of
    norms; sizes [T]: numbers in each tensor.
    """

    rows: tuple[int, ...]
    products: NDArray[np.float64]
    groups: Mapping[str, Distances]
    tensors: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, int]
    cosines: NDArray[np.float64]
    norms: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @property
    def distances(self) -> Distances:
        """Of all weights [R, R]."""
        return distances_of(self.products)


def distances_of(products: NDArray[np.float64]) -> Distances:
    """Distances [R, R] of points whose inner products are given."""
    squares = np.diag(products)
    result: Distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))
    return result


def compare(series: Statistics, without: Collection[int] = ()) -> Geometry:
    """The geometry of all checkpoints with the usual tensors, finite, but for some rows."""
    columns = _columns(series)
    ill = _diverged(series, columns)
    rows = tuple(
        row for row in range(len(series.checkpoints))
        if row not in without and not ill[row] and all(np.isfinite(series.sample[t][row]).all() for t in columns)
    )  # fmt: skip
    total, cosines = np.zeros((len(rows), len(rows))), []
    by_group: dict[str, NDArray[np.float64]] = {}
    names: dict[str, list[str]] = defaultdict(list)
    numbers: dict[str, int] = defaultdict(int)
    crowded = len({group_of(series.tensors[t]) for t in columns}) > MOST_GROUPS
    for t in columns if rows else ():
        if not trains(series, t, rows):
            continue
        name, sample = series.tensors[t], series.sample[t][list(rows)].astype(np.float64)
        step = np.diff(sample, axis=0)
        moved = np.mean(step**2, axis=1) if len(step) else np.ones(1)
        typical = np.median(moved) or np.mean(moved)
        centred = sample - sample[0]
        products = centred @ centred.T * (series.sizes[t] / len(sample[0]) / typical)
        total += products
        group = group_of(name).partition(".")[0] if crowded else group_of(name)
        by_group[group] = by_group.get(group, 0) + products
        names[group].append(name)
        numbers[group] += int(series.sizes[t])
        shape = series.described[rows[0]][name].shape
        if len(shape) > 1 and series.sizes[t] >= LARGE:
            cosines.append(_cosines(sample))
    norms = 0.5 * np.log(np.maximum(series.squares[list(rows)][:, columns], 1e-30))
    related = np.median(cosines, axis=0) if cosines else np.ones_like(total)
    groups = {group: distances_of(products) for group, products in by_group.items()}
    tensors = {group: tuple(of) for group, of in names.items()}
    return Geometry(rows, total, groups, tensors, dict(numbers), related, norms, series.sizes[columns])


def _diverged(series: Statistics, columns: Sequence[int]) -> NDArray[np.bool_]:
    """Which checkpoints [E] are not finite, or before such and already of far larger norm than those before them."""
    ill = broken(series)
    norms = np.sqrt(series.squares[:, columns].sum(1))
    for row in range(len(ill) - 2, 0, -1):
        ill[row] |= ill[row + 1] and norms[row] > BLOWN_UP * np.median(norms[:row])
    return ill


def _columns(series: Statistics) -> list[int]:
    """The weights that most checkpoints have, in the shape that most have, masks apart."""
    shapes = [[about[name].shape if name in about else None for about in series.described] for name in series.tensors]
    result = []
    for t in np.flatnonzero(weights_of(series) & ~masks(series)):
        usual = max(set(shapes[t]), key=shapes[t].count)
        common = 2 * shapes[t].count(usual) > len(shapes[t]) and usual is not None
        if common and not series.tensors[t].endswith(RUNNING):
            result.append(int(t))
    return result


def _cosines(sample: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = sample - sample.mean(1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30)
    result: NDArray[np.float64] = unit @ unit.T
    return result


def detours(distances: Distances, rows: Sequence[int]) -> NDArray[np.float64]:
    """log d of each row but the first and last: d = (|W_e - W_e-1| + |W_e+1 - W_e|) / |W_e+1 - W_e-1|, over the rows given.

    1 on a straight way, 1.41 on a random walk; 0 (no detour) where nothing moved.
    """
    before, here, after = (np.asarray(rows)[k : len(rows) - 2 + k] for k in range(3))
    way = distances[before, here] + distances[here, after]
    direct = distances[before, after]
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = np.where(way > 0, np.log(way / np.maximum(direct, 1e-12 * way)), 0.0)
    return result


def excess(logs: NDArray[np.float64], near: int = 6) -> NDArray[np.float64]:
    """By how much each exceeds the median of the `near` others next to it."""
    result = np.zeros(len(logs))
    for k in range(len(logs)):
        others = sorted((abs(other - k), other) for other in range(len(logs)) if other != k)[:near]
        result[k] = logs[k] - (np.median([logs[other] for _, other in others]) if others else 0.0)
    return result


def scale(values: NDArray[np.float64]) -> float:
    """A robust standard deviation: 1.4826 median absolute deviations."""
    return float(1.4826 * np.median(np.abs(values))) if len(values) else 0.0
