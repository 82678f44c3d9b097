"""Is there anything in the number? Every measure against redrawn data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.hurst import exponents
from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kuramoto import kuramoto, metastability_in_halves
from posthoc.analysis.series import Axis
from posthoc.analysis.verdicts import NAMES, two_sided_p

FloatArray = NDArray[np.float64]
HALVED = 39
"""Draws of which halves of the units are measured, too, for the intervals."""


@dataclass(frozen=True)
class Comparison:
    """A value beside its null: mean and standard deviation of B draws, z = (value - mean) / sd, two-sided p.

    p: see `verdicts.two_sided_p`; low, high: the range of the middle 95 % of the draws; draws: B, 0 in files of
    versions that did not record it. NaN where nothing can be compared.
    """

    mean: float
    sd: float
    z: float
    p: float
    low: float = math.nan
    high: float = math.nan
    draws: int = 0


def compare(value: float, drawn: FloatArray, stages: Sequence[int] = ()) -> Comparison:
    """Compare a value with the draws [B] of its null, which were drawn in stages that end at `stages`.

    >>> compare(3.0, np.array([1.0, -1.0, 0.5, -0.5])).p
    0.4
    """
    there = drawn[np.isfinite(drawn)]
    if len(there) < 2 or not np.isfinite(value):
        return Comparison(math.nan, math.nan, math.nan, math.nan)
    mean, sd = float(there.mean()), float(there.std(ddof=1))
    low, high = np.quantile(there, [0.025, 0.975])
    z = float((value - mean) / sd) if sd > 0 else math.nan
    return Comparison(mean, sd, z, two_sided_p(value, drawn, stages), float(low), float(high), len(there))


def stream(seed: int, epoch: int, null: str, draw: int) -> np.random.Generator:
    """The random numbers of one draw, by themselves: any draw can be computed again alone, in any order."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, NAMES.index(null), draw])))


Drawn = dict[str, dict[str, FloatArray]]
"""null -> what was measured of its draws: H and M [B], F [B, S]."""


def draws(
    axis: Axis,
    live: NDArray[np.bool_],
    scales: NDArray[np.int64],
    fluctuation: str,
    count: int,
    seed: int,
    epoch: int,
    nulls: Mapping[str, str] | None = None,
    first: int = 0,
    halves: FloatArray | None = None,
    estimator: str = "dfa",
) -> Drawn:
    """For each null the mean exponent over units (H) and the metastability (M) of `count` draws, [count] each.

    With H come the curves behind it (F), [count, S]: of each draw the relative log F(s), averaged over units. live: [U],
    the units to draw for; nulls: which, and for which measures (default: all of the axis, for theirs); first: how many
    draws there are already, of which these are the next; halves: [K, live units], 1 for those of one half: of the first
    `HALVED` draws H and M of that half less those of the other as well (H halves, M halves), [count, K], else NaN.
    """
    chosen = axis.nulls if nulls is None else nulls
    found = {null: {measure: np.full(count, np.nan) for measure in measures} for null, measures in chosen.items()}
    for null, measures in chosen.items():
        if "H" in measures:
            found[null]["F"] = np.full((count, len(scales)), np.nan)
        if halves is not None:
            found[null] |= {f"{measure} halves": np.full((count, len(halves)), np.nan) for measure in measures}
    if not live.any():
        return found
    tasks = [(null, draw) for null in chosen for draw in range(count)]

    def work(begin: int, end: int) -> None:
        for null, draw in tasks[begin:end]:
            series = axis.redraw(null, stream(seed, epoch, null, first + draw), live)
            if "H" in chosen[null]:
                result = exponents(series, estimator, scales, fluctuation)
                found[null]["H"][draw] = mean_alive(result.alpha)
                found[null]["F"][draw] = middle(result.relative_log_fluctuation())[0]
                if halves is not None and draw < HALVED:
                    found[null]["H halves"][draw] = _mean_of_halves(result.alpha, halves)
            if "M" in chosen[null]:
                if halves is not None and draw < HALVED:
                    found[null]["M"][draw], found[null]["M halves"][draw] = metastability_in_halves(series, halves)
                else:
                    found[null]["M"][draw] = kuramoto(series).metastability

    in_threads(work, len(tasks))
    return found


def mean_alive(alpha: FloatArray) -> float:
    """Mean over the units that have an exponent; NaN where none has."""
    alive = alpha[np.isfinite(alpha)]
    return float(alive.mean()) if len(alive) else np.nan


def middle(values: FloatArray) -> FloatArray:
    """Mean of curves [n, S] and the ends of the middle 95 % of them at each point, [3, S]; NaN where there is none."""
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return np.full((3, values.shape[1]), np.nan)
    return np.array([values.mean(axis=0), *np.quantile(values, [0.025, 0.975], axis=0)])


def _mean_of_halves(alpha: FloatArray, halves: FloatArray) -> FloatArray:
    """Mean exponent of one half of the units [U] less that of the other, [K]; units without one are left out."""
    alive = np.isfinite(alpha)
    alpha = np.where(alive, alpha, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = ((half * alpha).sum(axis=1) / (half * alive).sum(axis=1) for half in (halves, 1 - halves))
    return np.asarray(first - second)
