"""Is there anything in the number? Every measure against redrawn data, and the intervals of what is left."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.dfa import dfa
from posthoc.analysis.kernels import in_threads
from posthoc.analysis.kuramoto import kuramoto, unit_phasors
from posthoc.analysis.series import Axis

FloatArray = NDArray[np.float64]
DESCRIPTIONS = {
    "white": "pure noise through the same protocol",
    "label": "labels permuted",
    "order": "images reordered within their class",
    "split": "each class split in ten at random",
    "channel": "images reordered within their class, each channel by itself",
    "time": "points in time permuted",
    "phase": "spectral phases randomised",
}
NAMES = tuple(DESCRIPTIONS)
"""In an order that stays: streams of random numbers are keyed by it."""


@dataclass(frozen=True)
class Comparison:
    """A value beside its null: mean and standard deviation of B draws, z = (value - mean) / sd, two-sided p.

    p = (1 + number of draws as far from the null's mean as the value) / (B + 1); low, high: the range of the middle
    95 % of the draws. NaN where nothing can be compared.
    """

    mean: float
    sd: float
    z: float
    p: float
    low: float = math.nan
    high: float = math.nan


def compare(value: float, drawn: FloatArray) -> Comparison:
    """Compare a value with the draws [B] of its null.

    >>> compare(3.0, np.array([1.0, -1.0, 0.5, -0.5])).p
    0.2
    """
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2 or not np.isfinite(value):
        return Comparison(math.nan, math.nan, math.nan, math.nan)
    mean, sd = float(drawn.mean()), float(drawn.std(ddof=1))
    as_far = int((np.abs(drawn - mean) >= abs(value - mean)).sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    z = float((value - mean) / sd) if sd > 0 else math.nan
    return Comparison(mean, sd, z, (1 + as_far) / (len(drawn) + 1), float(low), float(high))


def stream(seed: int, epoch: int, null: str, draw: int) -> np.random.Generator:
    """The random numbers of one draw, by themselves: any draw can be computed again alone, in any order."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, NAMES.index(null), draw])))


def draws(
    axis: Axis,
    live: NDArray[np.bool_],
    scales: NDArray[np.int64],
    fluctuation: str,
    count: int,
    seed: int,
    epoch: int,
    nulls: Mapping[str, str] | None = None,
) -> dict[str, dict[str, FloatArray]]:
    """For each null the mean alpha over units (H) and the metastability (M) of `count` draws, [count] each.

    With H come the curves behind it (F), [count, S]: of each draw the relative log F(s), averaged over units. live: [U],
    the units to draw for; nulls: which, and for which measures (default: all of the axis, for theirs).
    """
    chosen = axis.nulls if nulls is None else nulls
    found = {null: {measure: np.full(count, np.nan) for measure in measures} for null, measures in chosen.items()}
    for null, measures in chosen.items():
        if "H" in measures:
            found[null]["F"] = np.full((count, len(scales)), np.nan)
    if not live.any():
        return found
    tasks = [(null, draw) for null in chosen for draw in range(count)]

    def work(first: int, last: int) -> None:
        for null, draw in tasks[first:last]:
            series = axis.redraw(null, stream(seed, epoch, null, draw), live)
            if "H" in chosen[null]:
                result = dfa(series, scales, fluctuation=fluctuation)
                found[null]["H"][draw] = mean_alive(result.alpha)
                found[null]["F"][draw] = middle(result.relative_log_fluctuation())[0]
            if "M" in chosen[null]:
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


def hurst_interval(
    alpha: FloatArray, strata: NDArray[np.int64], random: np.random.Generator, count: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the mean exponent over units [U], stratified by `strata` [U] (layers)."""
    alive = np.isfinite(alpha)
    groups = [alpha[alive & (strata == stratum)] for stratum in np.unique(strata[alive])]
    if not groups:
        return np.nan, np.nan
    total = np.sum([random.choice(group, (count, len(group))).sum(axis=1) for group in groups], axis=0)
    low, high = np.quantile(total / alive.sum(), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def metastability_interval(series: FloatArray, value: float) -> tuple[float, float]:
    """A 95 % interval of the metastability by the jackknife over units.

    Not by the bootstrap: units drawn twice are in step with themselves, which alone raises the metastability of
    independent units by a factor of sqrt(2), so that the percentile interval would miss the value it is for.
    """
    z = unit_phasors(series)
    U = len(z)
    if U < 3:
        return np.nan, np.nan
    total = z.sum(axis=0)
    left_out = np.array([np.abs(total - row).std() for row in z]) / (U - 1)
    error = np.sqrt((U - 1) / U * ((left_out - left_out.mean()) ** 2).sum())
    return float(value - 1.96 * error), float(value + 1.96 * error)


def block_bootstrap(
    statistic: Callable[..., float], columns: Sequence[FloatArray], random: np.random.Generator, count: int = 1000
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of a run's epochs, which are autocorrelated: blocks of E^(1/3) epochs.

    Blocks wrap around (circular block bootstrap). Epochs at which a column is NaN are left out first.
    """
    table = np.array(columns, dtype=float)
    table = table[:, np.isfinite(table).all(axis=0)]
    E = table.shape[1]
    if E < 6:
        return np.nan, np.nan
    length = max(2, round(E ** (1 / 3)))
    starts = random.integers(0, E, (count, -(-E // length)))
    rows = ((starts[:, :, None] + np.arange(length)) % E).reshape(count, -1)[:, :E]
    values = np.array([statistic(*table[:, row]) for row in rows])
    values = values[np.isfinite(values)]
    return (float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))) if len(values) else (np.nan, np.nan)
