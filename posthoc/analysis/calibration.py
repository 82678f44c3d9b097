"""What exponent a short series has of itself: alpha of simulated series of known exponent, inverted.

DFA of a short series is biased. Series of the same length and known exponent, analysed with the same scales and order,
give the mean and the quantiles of alpha for every true exponent; the inverted mean curve gives the debiased exponent,
the inverted quantile curves its confidence interval (Neyman).

The mean is that of fractional Gaussian noise (alpha = H) and fractional Brownian motion (alpha = H + 1). Between .98
and 1.28 it is interpolated, for no one curve could serve there: sampled motion of H .05 to .3 is nearly white at high
frequencies, and a short one has the alpha of a noise of exponent .5 to 1. The intervals cover all the same: what alpha
may be for a true exponent is taken from both, that motion or noise and ARFIMA of the same exponent, whose spectrum is
straight throughout, and an exponent is excluded only if a greater one would be, too. So a short series whose alpha is
that of persistent noise may have an interval that reaches motion. Nothing is clipped: what lies outside the simulated
exponents has none.
"""

import functools
import itertools
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.fluctuation import Windows, analyse
from posthoc.analysis.fractional import arfima, fractional
from posthoc.analysis.kept import kept
from posthoc.analysis.kernels import in_threads
from posthoc.streams import keyed

NOISE = np.linspace(0.02, 0.98, 17)
MOTION = np.linspace(1.05, 1.98, 17)
GRID = np.concatenate([NOISE, MOTION])
APART = 1.28
"""From this exponent on motion does not pass for noise."""
LEVEL = 0.95


@dataclass(frozen=True)
class Calibration:
    """Mean, low and high quantile of alpha [G] for the true exponents `exponent` [G]."""

    exponent: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray

    def debias(self, alpha: ArrayLike, beyond: float = np.nan) -> FloatArray:
        """The exponents whose mean alpha is `alpha`; beyond the simulated ones `beyond`, and below them its negative."""
        return np.asarray(np.interp(np.asarray(alpha, float), self.mean, self.exponent, left=-beyond, right=beyond))

    def interval(self, alpha: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """The 95 % confidence interval of one series' exponent; an end beyond the simulated exponents is infinite."""
        alpha = np.asarray(alpha, float)
        low = np.interp(alpha, self.high, self.exponent, left=-np.inf, right=np.inf)
        high = np.interp(alpha, self.low, self.exponent, left=-np.inf, right=np.inf)
        return low, high


@functools.lru_cache(maxsize=64)
def calibration(T: int, scales: tuple[int, ...], order: int = 1, fluctuation: str = "peng") -> Calibration:
    """The calibration of DFA for series of T points, simulated once and kept on disk."""
    key = repr((2, T, scales, order, fluctuation, _series(T), LEVEL, GRID.tolist()))
    shapes = {field.name: GRID.shape for field in fields(Calibration)}
    return Calibration(**kept("calibration", key, shapes, lambda: vars(_simulate(T, scales, order, fluctuation))))


def _simulate(T: int, scales: tuple[int, ...], order: int, fluctuation: str) -> Calibration:
    count = _series(T)
    alpha = np.empty((2, len(GRID), count))
    tasks = [*itertools.product(range(2), range(len(GRID)))]

    def work(first: int, last: int) -> None:
        for kind, g in tasks[first:last]:
            random = keyed([T, kind, g])
            step = max(1, 2**20 // T)  # no more in memory at once
            for start in range(0, count, step):
                some = slice(start, min(start + step, count))
                series = (fractional, arfima)[kind](GRID[g], T, some.stop - start, random)
                alpha[kind, g, some] = analyse(series, scales, Windows(order, fluctuation)).alpha

    in_threads(work, len(tasks))
    mean = alpha[0].mean(axis=1)
    apart = (GRID < 1) | (GRID >= APART)
    mean = np.interp(GRID, GRID[apart], np.maximum.accumulate(_smooth(GRID[apart], mean[apart])))
    return Calibration(GRID, mean, *_accepted(alpha))


def _accepted(alpha: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ends of the range in which 95 % of alpha [2, G, n] lie, neither falling with the exponent.

    With equal tails, but where motion of a greater exponent would pass for noise: there the lower end is that motion's,
    and the upper end cuts off the more; and with 94 % of either family at the least.
    """
    low = _smooth(GRID, np.quantile(np.concatenate(list(alpha), axis=1), (1 - LEVEL) / 2, axis=1))
    low = np.minimum.accumulate(low[::-1])[::-1]
    ends = []
    for values, level in ((np.concatenate(list(alpha), axis=1), LEVEL), *((family, LEVEL - 0.01) for family in alpha)):
        share = np.minimum((values < low[:, None]).mean(axis=1) + level, 1)
        ends.append([np.quantile(row, q) for row, q in zip(values, share, strict=True)])
    return low, np.maximum.accumulate(_smooth(GRID, np.max(ends, axis=0)))


def _smooth(exponents: FloatArray, values: FloatArray) -> FloatArray:
    """The curve freed of its sampling noise, by a polynomial for the exponents below 1 and one for those above."""
    parts = []
    for part in (exponents < 1, exponents >= 1):
        parts.append(np.polynomial.Chebyshev.fit(exponents[part], values[part], 5)(exponents[part]))
    return np.concatenate(parts)


def _series(T: int) -> int:
    """How many to simulate for each exponent: the longer, the less they scatter."""
    return int(np.clip(2**21 // T, 100, 4096))
