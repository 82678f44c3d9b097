"""The Hurst exponent of the units, and integration, the nearness of their mean exponent to its optimum."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.measures.measure import Function, Measure, Reading, Scope, Series
from posthoc.analysis.records import NOWHERE, Interval


def integration(hurst: ArrayLike, h_opt: float = 0.7, sigma_h: float = 0.15) -> FloatArray:
    """H_eff = exp(-(H - H_opt)^2 / (2 sigma_H^2)), the nearness of the Hurst exponent to its optimum.

    >>> float(integration(0.7))
    1.0
    """
    hurst = np.asarray(hurst, dtype=float)
    return np.asarray(np.exp(-((hurst - h_opt) ** 2) / (2 * sigma_h**2)))


def hurst(series: Series) -> Reading:
    """The mean exponent of the units that have one, as estimated."""
    result = series.exponents
    halves = None if series.halves is None else _mean_of_halves(result.alpha, series.halves)
    return Reading(mean_alive(result.alpha), result.alpha, halves, middle(result.relative_log_fluctuation()))


def mean_alive(alpha: FloatArray) -> float:
    """Mean over the units that have an exponent; NaN where none has."""
    alive = alpha[np.isfinite(alpha)]
    return float(alive.mean()) if len(alive) else math.nan


def means_alive(alpha: FloatArray) -> FloatArray:
    """Mean over the documents that have an exponent, of each unit of alpha [D, U]."""
    alive = np.isfinite(alpha)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(alive, alpha, 0).sum(axis=0) / alive.sum(axis=0))


def middle(values: FloatArray) -> FloatArray:
    """Mean of curves [n, S] and the ends of the middle 95 % of them at each point, [3, S]; NaN where there is none."""
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return np.full((3, values.shape[1]), np.nan)
    return np.array([values.mean(axis=0), *_ends(np.sort(values, axis=0))])


def _ends(ordered: FloatArray) -> FloatArray:
    """As np.quantile(ordered, [0.025, 0.975], axis=0) of values that are sorted, in a quarter of the time where these are few."""
    at = np.array([[0.025], [0.975]]) * (len(ordered) - 1)
    below = np.floor(at).astype(np.int64)[:, 0]
    share = at - below[:, None]
    low, high = ordered[below], ordered[np.minimum(below + 1, len(ordered) - 1)]
    return np.asarray(np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share)))


def _mean_of_halves(alpha: FloatArray, halves: FloatArray) -> FloatArray:
    """Mean exponent of one half of the units [U] less that of the other, [K]; units without one are left out."""
    alive = np.isfinite(alpha)
    alpha = np.where(alive, alpha, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = ((half * alpha).sum(axis=1) / (half * alive).sum(axis=1) for half in (halves, 1 - halves))
    return np.asarray(first - second)


def debiased(alpha: Any, scope: Scope, beyond: float = math.nan) -> Any:
    """Exponents freed of the bias of short series, where the protocol says so; beyond: what lies beyond the calibration."""
    if not scope.protocol.calibrate:
        return alpha
    from posthoc.analysis.calibration import calibration

    return calibration(scope.T, scope.scales, fluctuation=scope.protocol.fluctuation).debias(alpha, beyond)


def _integration(alpha: Any, scope: Scope) -> Any:
    """Beyond the calibration integration is 0, to four digits."""
    return integration(debiased(alpha, scope, math.inf), scope.protocol.h_opt, scope.protocol.sigma_h)


def _interval(of_hurst: Interval, scope: Scope) -> Interval:
    """What integration can be while the exponent is in its interval: up to 1 where that holds the optimum."""
    low, high = of_hurst
    if math.isnan(low) or math.isnan(high):
        return NOWHERE
    protocol = scope.protocol
    ends = sorted(float(integration(end, protocol.h_opt, protocol.sigma_h)) for end in (low, high))
    return (ends[0], 1.0) if low <= protocol.h_opt <= high else (ends[0], ends[1])


HURST = Measure(
    "hurst",
    "H",
    "Hurst exponent H",
    "mean over the units of the exponent of their fluctuations",
    of_series=hurst,
    finish=debiased,
    headline=False,
    curve=True,
)
INTEGRATION = Measure(
    "integration",
    "H_eff",
    "integration H_eff",
    "nearness of the mean Hurst exponent to its optimum, from 0 to 1",
    of_measure=Function("hurst", _integration, _interval),
    limits=(0.0, 1.0),
    margin=0.1,
    digits=3,
    layers=False,
)
