"""Two series beside each other: are they two trainings, or is one the copy, the continuation or the average of the other?"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from posthoc.errors import PosthocError
from posthoc.replay.layout import find_run
from posthoc.replay.series.averages import AVERAGED, from_average
from posthoc.replay.series.exact import weights_of
from posthoc.replay.series.geometry import compare
from posthoc.replay.series.placing import RELATED
from posthoc.replay.series.reading import Progress, Statistics, read_series
from posthoc.replay.series.share import WHOLE, Share
from posthoc.replay.weights import MAIN, Pick


class Relation(Enum):
    """What the second of two series is to the first."""

    COPY = "copy"
    PARTLY_COPY = "partly copy"
    CONTINUATION = "continuation"
    AVERAGE = "average"
    SAME_START = "same start"
    RELATED = "related"
    UNRELATED = "unrelated"
    OTHER_NETWORK = "other network"


@dataclass(frozen=True)
class Comparison:
    """What the second series is to the first, and the numbers that say so.

    shared: pairs of checkpoints, one of each, with the same weights; cosine: the largest between any two (see
    `Geometry`); step: of the second's first from the nearest of the first, in typical steps of the first; average: the
    median over the second of the distance from the nearest average of the first, in distances from its nearest.
    """

    relation: Relation
    first: Path
    second: Path
    shared: tuple[tuple[str, str], ...] = ()
    cosine: float = float("nan")
    step: float = float("nan")
    average: float = float("nan")

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        numbers = {"cosine": self.cosine, "step": self.step, "average": self.average}
        return {
            "relation": self.relation.value,
            "first": str(self.first),
            "second": str(self.second),
            "shared": [list(pair) for pair in self.shared],
            **{name: value if np.isfinite(value) else None for name, value in numbers.items()},
        }


def compare_series(
    first: Path,
    second: Path,
    pick: Pick = MAIN,
    progress: Progress | None = None,
    share: Share = WHOLE,
    **options: Any,
) -> Comparison:
    """Read two series, of each tensor what `share` says, and say what the second is to the first.

    options: those of `find_run`.
    """
    runs = [find_run(place, pick=pick, sound=False, **options) for place in (first, second)]
    series = read_series([*runs[0].checkpoints, *runs[1].checkpoints], pick, progress, share=share)
    count = len(runs[0].checkpoints)
    if count < 2:
        raise PosthocError(f"{first} holds one checkpoint; give a series, which has two or more.")
    a, b = range(count), range(count, len(series.checkpoints))
    shared = _shared(series, a, b)
    if not set(series.described[0]) & set(series.described[count]) or not _same_shapes(series, count):
        return Comparison(Relation.OTHER_NETWORK, first, second)
    geometry = compare(series)
    if len(geometry.rows) < len(series.checkpoints):
        left_out = next(row for row in range(len(series.checkpoints)) if row not in geometry.rows)
        raise PosthocError(
            f"{series.checkpoints[left_out].path} has other tensors than the rest, or numbers that are not finite; "
            "run `posthoc check` on its series."
        )
    distances = geometry.distances
    cosine = float(np.max(geometry.cosines[np.ix_(a, b)]))
    steps = np.array([distances[k, k + 1] for k in range(count - 1)])
    step = float(np.min(distances[a, count]) / max(float(np.median(steps)), 1e-30))
    ratios = [from_average(geometry.products, k, list(a)) / max(float(np.min(distances[a, k])), 1e-30) for k in b]
    average = float(np.median(ratios))
    last = int(np.argmin(distances[a, count])) == count - 1
    pairs = tuple((series.names[i], series.names[j]) for i, j in shared)
    relation = _relation([j for _, j in shared], b, shared == [(0, count)], cosine, last and step < 2, average)
    return Comparison(relation, first, second, pairs, cosine, step, average)


def _relation(
    copied: Sequence[int], b: Sequence[int], start: bool, cosine: float, goes_on: bool, average: float
) -> Relation:
    if set(copied) == set(b):
        return Relation.COPY
    if goes_on and len(set(copied)) <= 1:
        return Relation.CONTINUATION
    if start:
        return Relation.SAME_START
    if copied:
        return Relation.PARTLY_COPY
    if cosine < RELATED:
        return Relation.UNRELATED
    return Relation.AVERAGE if average < AVERAGED else Relation.RELATED


def _shared(series: Statistics, a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of the one and of the other series with the same weights."""
    digest = series.digest[:, weights_of(series)]
    rows = {digest[k].tobytes(): k for k in reversed(a)}
    return [(rows[key], k) for k in b if (key := digest[k].tobytes()) in rows]


def _same_shapes(series: Statistics, count: int) -> bool:
    first, second = series.described[0], series.described[count]
    return {name: about.shape for name, about in first.items()} == {name: about.shape for name, about in second.items()}
