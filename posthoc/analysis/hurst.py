"""The Hurst exponent of a series by three estimators: DFA, and two likelihoods of fractional Gaussian noise.

DFA makes no model of the series: it stands trends and steps that the likelihoods take for persistence, and pays with
two to ten times their variance. Which to believe when, with figures, is in docs/estimators.md.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray, as_series
from posthoc.analysis.calibration import calibration
from posthoc.analysis.fluctuation import DFA, REASONS, Windows, analyse
from posthoc.analysis.fractional import noise_covariance
from posthoc.analysis.kernels import dfa as kernel
from posthoc.analysis.kernels import in_threads, likelihood, phase
from posthoc.analysis.kernels.products import product
from posthoc.analysis.protocol import ESTIMATORS
from posthoc.errors import UsageError

LEAST_POINTS = 10
"""Of the likelihoods; DFA needs as many as its scales do."""
MOST_POINTS = 2048
"""Of the restricted likelihood."""
BEYOND = "beyond the calibration"
GRID = np.linspace(0.005, 0.995, 56)
"""The exponents at which a likelihood is computed."""
FINE = np.round(np.linspace(0.005, 0.995, 991), 3)
"""Those among which it is interpolated."""
WITHIN = 3.8415 / 2
"""Log likelihood below the highest within which an exponent belongs to the interval: half of chi2 at 95 %, 1 degree."""


@dataclass(frozen=True)
class Hurst:
    """Result of `hurst`: H and the ends of its 95 % interval, scalars for one series, [...] for a batch [..., T].

    reason: why each H is NaN (`constant`, `non-finite`, `no fluctuation`, `beyond the calibration`), None where it is
    not; those of a batch in the order of its series.
    """

    H: FloatArray
    low: FloatArray
    high: FloatArray
    reason: tuple[str | None, ...]
    estimator: str

    @property
    def undetermined(self) -> NDArray[np.bool_]:
        """Where the interval excludes no noise: it holds every exponent from 0 to 1."""
        return np.asarray((self.low <= 0) & (self.high >= 1))

    def __str__(self) -> str:
        """Of one series: H and its interval, `undetermined` where that excludes nothing."""
        if np.ndim(self.H):
            return repr(self)
        low, high = float(self.low), float(self.high)
        interval = f"{low:.2f} to {high:.2f}"
        if self.undetermined:
            interval = "undetermined"
        elif math.isinf(low) or math.isinf(high):
            interval = f"at most {high:.2f}" if math.isinf(low) else f"at least {low:.2f}"
        value = self.reason[0] or f"{self.H:.2f}"
        return f"H {value}" if math.isnan(low) else f"H {value} (95 %: {interval})"


def hurst(
    x: ArrayLike, estimator: str = "dfa", scales: ArrayLike | None = None, order: int = 1, fluctuation: str = "peng"
) -> Hurst:
    """Hurst exponent of each series with its 95 % interval: H of fractional Gaussian noise, 0.5 for white noise.

    Estimators:

    * `dfa`: the slope of detrended fluctuation analysis, freed of the bias of short series and with the interval of
      Neyman's construction, both by simulation (`posthoc.analysis.calibration`). The first call for a length takes
      seconds; later ones read what it kept. From 0 to 2: beyond 1 lies fractional Brownian motion. Where nothing can
      be excluded the interval is infinite; where no noise can, as in most series of 25 points, H is undetermined.
    * `whittle`: the best fit of fractional Gaussian noise to the periodogram, whose expectation at each Fourier
      frequency is exact (Sykulski et al. 2019).
    * `reml`: its exact restricted likelihood, whatever the mean (Patterson and Thompson 1971); T: at most 2048, for
      time grows with its square, and from 128 on `whittle` is as good.

    The likelihoods' H lies between 0.005 and 0.995; at an end, the series is likely none of such a noise: a trend,
    say, or a random walk. Their intervals are of the profile likelihood ratio; they end at 0 and 1. T: 10 or more.

    Parameters
    ----------
    x
        One series [T] or a batch [..., T], real numbers.
    estimator
        `dfa`, `whittle` or `reml`.
    scales, order, fluctuation
        As `posthoc.dfa` takes them; of the estimator `dfa` alone.

    Returns
    -------
    Hurst
        `H` and the ends of its interval `low` and `high`, scalars or [...]; `reason` for NaN; `undetermined` where the interval
        excludes no noise.

    Raises
    ------
    PosthocError
        Where an argument is out of range, the series are too short, or x is refused as by `posthoc.dfa`.

    Examples
    --------
    >>> noise = np.random.default_rng(1).standard_normal(500)
    >>> print(hurst(noise, "whittle"))
    H 0.45 (95 %: 0.40 to 0.50)
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"estimator is {estimator!r}; give {', '.join(ESTIMATORS)}.")
    series, rounding = as_series(x)
    if series.ndim < 1 or not series.size:
        raise UsageError(f"x has shape {series.shape}; expected series [T] or [..., T].")
    shape, T = series.shape[:-1], series.shape[-1]
    batch = np.ascontiguousarray(series.reshape(-1, T))
    if estimator == "dfa":
        analysis = analyse(batch, scales, Windows(order, fluctuation))
        known = calibration(T, tuple(analysis.scales.tolist()), order, fluctuation)
        H, (low, high) = known.debias(analysis.alpha), known.interval(analysis.alpha)
        reason = tuple(why or (BEYOND if math.isnan(h) else None) for why, h in zip(analysis.reason, H, strict=True))
    else:
        if scales is not None or order != 1 or fluctuation != "peng":
            raise UsageError(f"scales, order and fluctuation are those of estimator dfa; {estimator} has none.")
        H, low, high, reason = _by_likelihood(batch, rounding, LOG_LIKELIHOODS[estimator])
    return Hurst(H.reshape(shape)[()], low.reshape(shape)[()], high.reshape(shape)[()], reason, estimator)


def exponents(series: NDArray[np.floating], estimator: str, scales: NDArray[np.int64], fluctuation: str) -> DFA:
    """DFA of each unit of series [U, T], its alpha and reasons being those of the estimator; all else is DFA's.

    What measures and their nulls are made of: the exponent as estimated (that of DFA not debiased), and F(s) beside it.
    """
    result = analyse(series, scales, Windows(fluctuation=fluctuation))
    if estimator == "dfa":
        return result
    estimated = hurst(series, estimator)
    return replace(result, alpha=estimated.H, reason=estimated.reason)


def _by_likelihood(
    batch: FloatArray, rounding: float, log_likelihood: Callable[[FloatArray], FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray, tuple[str | None, ...]]:
    """H, low and high [U] of batch [U, T], and why a series has none."""
    from scipy.interpolate import CubicSpline  # here, for it takes long to import

    U, T = batch.shape
    if T < LEAST_POINTS:
        raise UsageError(f"Series of {T} points are too short for a likelihood; it needs {LEAST_POINTS}.")
    if log_likelihood is reml_log_likelihood and T > MOST_POINTS:
        raise UsageError(f"Series of {T} points are too long for reml ({MOST_POINTS}); whittle is as good for them.")
    y, state = np.empty((U, T)), np.empty(U, np.int8)
    in_threads(lambda first, last: phase.centre_rows(first, last, batch, rounding, y, state), U)
    live = state == kernel.LIVE
    H, low, high = np.full((3, U), np.nan)
    if live.any():
        profile = CubicSpline(GRID, log_likelihood(y[live]), axis=1)(FINE)
        best = profile.argmax(axis=1)
        around = np.clip(best, 1, len(FINE) - 2)
        before, top, after = (np.take_along_axis(profile, around[:, None] + k, 1)[:, 0] for k in (-1, 0, 1))
        apex = 0.5 * (before - after) / (before - 2 * top + after)
        H[live] = FINE[best] + np.where(best == around, apex * (FINE[1] - FINE[0]), 0.0)
        inside = profile >= profile.max(axis=1, keepdims=True) - WITHIN
        first, last = inside.argmax(axis=1), len(FINE) - 1 - inside[:, ::-1].argmax(axis=1)
        low[live] = np.where(first == 0, 0.0, FINE[first])
        high[live] = np.where(last == len(FINE) - 1, 1.0, FINE[last])
    return H, low, high, tuple(REASONS.get(code) for code in state.tolist())


def whittle_log_likelihood(y: FloatArray) -> FloatArray:
    """Whittle's log likelihood of each centred series y [U, T] for every H of GRID, [U, G], at the best scale.

    The sum over the Fourier frequencies but 0 of -log f - I / f, I being the periodogram and f what is expected of it;
    the frequency of alternating signs, which an even T has, counts half.
    """
    expected, weight = _expected_periodogram(y.shape[1])
    periodogram = np.abs(scipy.fft.rfft(y, axis=1)[:, 1:]) ** 2
    count = weight.sum()
    level = product(periodogram * weight, 1 / expected) / count
    return np.asarray(-count * np.log(level) - product(weight[None], np.log(expected)))


@functools.lru_cache(maxsize=16)
def _expected_periodogram(T: int) -> tuple[FloatArray, FloatArray]:
    """Over T, of T points of noise of each H at the Fourier frequencies [K, G]; and how much each frequency counts [K].

    The transform of the autocovariance times 1 - k / T: the spectral density, what sampling folds onto it from higher
    frequencies, and what leaks from one frequency into others in a finite series.
    """
    taper = 1 - np.arange(T) / T
    covariance = np.stack([noise_covariance(H, T) for H in GRID], axis=1) * taper[:, None]
    weight = np.ones(T // 2)
    if T % 2 == 0:
        weight[-1] = 0.5
    return 2 * scipy.fft.rfft(covariance, axis=0).real[1:] - covariance[0], weight


def reml_log_likelihood(y: FloatArray) -> FloatArray:
    """Restricted log likelihood of each centred series y [U, T] for every H of GRID, [U, G], at the best scale."""
    covariance = np.stack([noise_covariance(H, y.shape[1]) for H in GRID])
    result = np.empty((len(y), len(GRID)))
    in_threads(lambda first, last: likelihood.restricted(first, last, y, covariance, result), len(GRID))
    return result


LOG_LIKELIHOODS = {"whittle": whittle_log_likelihood, "reml": reml_log_likelihood}
