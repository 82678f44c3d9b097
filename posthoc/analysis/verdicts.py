"""Which null decides about which measure, and what the draws allow to be said: one table, one family, one set of words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
FALSE_DISCOVERIES = 0.05
DESCRIPTIONS = {
    "white": "pure noise, independent in every channel",
    "label": "permuted labels",
    "order": "another order of the same images",
    "split": "each class split in ten at random",
    "channel": "each channel's images in an order of its own",
    "time": "the same points in another order of time",
    "phase": "randomised spectral phases",
    "gaussian": "Gaussian noise with the channels' covariance",
}
NAMES = tuple(DESCRIPTIONS)
"""In an order that stays: streams of random numbers are keyed by it."""


@dataclass(frozen=True)
class Measure:
    """A measure and the null that decides about it.

    key: its field in an epoch's record; symbol: as people write it; tested: the measure through which it is tested,
    itself but for H_eff, which is a function of H; drawn: what of it is drawn, H or M; deciding: axis -> null. The other nulls of an axis are references:
    they show what a number consists of and decide nothing. `white` in particular assumes independent channels, and
    channels that share noise differ from it without any order in time.
    """

    key: str
    symbol: str
    tested: str
    drawn: str
    deciding: Mapping[str, str]


# Each keeps the channels' covariance and takes away the order in time, which alone is in question.
_ORDER = {"image": "order", "depth": "time", "epoch": "time"}
MEASURES = {
    measure.key: measure
    for measure in (
        Measure("hurst", "H", "hurst", "H", _ORDER),
        Measure("integration", "H_eff", "hurst", "H", _ORDER),
        Measure("metastability", "M", "metastability", "M", _ORDER),
    )
}
TESTED = tuple(measure.key for measure in MEASURES.values() if measure.tested == measure.key)


def two_sided_p(value: float, drawn: ArrayLike, stages: Sequence[int] = ()) -> float:
    """Twice the smaller tail of a value among the draws [B] of its null, drawn in stages that end at `stages` (B).

    p of a tail is (1 + G) / (n + 1), G being how many of n draws lie as far out as the value or farther. Where none
    does, more may be drawn, for whatever reason; a tail that a draw has reached is closed, and keeps the p of that
    stage. So P(p <= a) <= a holds when drawing may stop at any stage, whatever made it stop there (with one exceedance
    to wait for, the rule of Besag & Clifford 1991 in batches), and with one stage p is the ordinary one. Ranks make it
    right on skewed nulls, too. NaN without draws or value.

    >>> two_sided_p(3.0, [1.0, -1.0, 0.5, -0.5])
    0.4
    >>> two_sided_p(3.0, [1.0] * 9 + [4.0] + [1.0] * 9, stages=(9, 19))
    0.2
    """
    drawn = np.asarray(drawn, dtype=np.float64)
    if not math.isfinite(value) or not np.isfinite(drawn).any():
        return math.nan
    return min(1.0, 2 * min(_tail_p(drawn, beyond, stages) for beyond in (drawn >= value, drawn <= value)))


def _tail_p(drawn: FloatArray, beyond: NDArray[np.bool_], stages: Sequence[int]) -> float:
    """drawn, beyond: [B]; a draw without a value counts as none."""
    p = 1.0
    for end in stages or (len(drawn),):
        n, reached = int(np.isfinite(drawn[:end]).sum()), int(beyond[:end].sum())
        p = (1 + reached) / (n + 1)
        if reached:
            break
    return p


def least_p(draws: int) -> float:
    """The smallest two-sided p that so many draws can give.

    >>> least_p(39)
    0.05
    """
    return min(1.0, 2 / (draws + 1))


def rejected(p: ArrayLike, level: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """Which tests of a family are rejected at this false discovery rate (Benjamini & Hochberg 1995); never one of p NaN."""
    adjusted = corrected(p)
    return np.asarray(np.where(np.isnan(adjusted), False, adjusted <= level * (1 + 1e-9)), dtype=bool)


def corrected(p: ArrayLike) -> FloatArray:
    """The p of a family, each as the false discovery rate at which it would be rejected; NaN stays and is not counted."""
    p = np.asarray(p, dtype=np.float64)
    result = np.full(p.shape, np.nan)
    there = np.isfinite(p)
    if there.any():
        from scipy.stats import false_discovery_control  # here, for it takes long to import

        result[there] = false_discovery_control(p[there])
    return result


def worth_drawing(p: ArrayLike, draws: ArrayLike, most: int) -> NDArray[np.bool_]:
    """The tests of a family that are not rejected only for want of draws, [m] each, and that `most` draws could decide.

    Those whose value lies beyond every draw so far, are not rejected, and would be if the rest of so many draws did not
    reach it either.
    """
    p, draws = np.asarray(p, dtype=np.float64), np.asarray(draws)
    waiting = wanting(p, draws)
    best = np.where(waiting, np.minimum(p, least_p(most)), p)
    return np.asarray(waiting & rejected(best) & (draws < most))


def wanting(p: ArrayLike, draws: ArrayLike) -> NDArray[np.bool_]:
    """The tests of a family that are not rejected though the value lies beyond every draw: too few were drawn, [m]."""
    p, draws = np.asarray(p, dtype=np.float64), np.asarray(draws)
    with np.errstate(invalid="ignore"):
        beyond = p <= np.minimum(1.0, 2 / (draws + 1)) * (1 + 1e-9)
    return np.asarray(beyond & ~rejected(p))


@dataclass(frozen=True)
class Verdict:
    """What a run's epochs say of a measure against a null.

    differs, wanting, epochs: in how many epochs it differs, lacks draws to tell, of how many; draws: the most that an
    epoch was given; decides: whether this null is the measure's deciding one on the run's axis.
    """

    measure: Measure
    null: str
    differs: int
    wanting: int
    epochs: int
    draws: int
    decides: bool

    @property
    def mostly(self) -> bool | None:
        """Whether the measure differs in most epochs; None where draws are lacking to say."""
        if not self.epochs or (self.differs * 2 <= self.epochs < (self.differs + self.wanting) * 2):
            return None
        return self.differs * 2 > self.epochs

    def sentence(self, unit: str = "epoch") -> str:
        """In words, without a full stop."""
        than = f"that of {DESCRIPTIONS[self.null]}"
        symbol = self.measure.symbol
        few = f"too few draws in {self.wanting} of {self.epochs} {unit}s ({self.draws} draws: no p below {least_p(self.draws):.2g})"
        if self.differs:
            text = f"{symbol} differs from {than} in {self.differs} of {self.epochs} {unit}s"
            return f"{text}; {few}" if self.wanting else text
        if self.wanting:
            return f"whether {symbol} differs from {than} cannot be told: {few}"
        return f"{symbol} cannot be distinguished from {than} in any of {self.epochs} {unit}s"


def verdict(summary: Mapping[str, Any], axis: str, key: str, null: str | None = None) -> Verdict | None:
    """A measure's verdict from a run's summary, against its deciding null or another; None where it was not drawn."""
    measure = MEASURES[key]
    null = null or measure.deciding[axis]
    result = summary.get("nulls", {}).get(null, {}).get(key)
    if not result or not result.get("epochs"):
        return None
    draws = result.get("draws", summary.get("draws") or 0)
    lacking = result.get("epochs_wanting_draws", 0)
    decides = measure.deciding[axis] == null
    return Verdict(measure, null, result["epochs_told_apart"], lacking, result["epochs"], draws, decides)


def not_drawn(key: str, axis: str) -> str:
    """What to say, without a full stop, where the null that decides about a measure was not drawn."""
    measure = MEASURES[key]
    return f"whether {measure.symbol} differs from that of {DESCRIPTIONS[measure.deciding[axis]]} is not known: that null was not drawn"
