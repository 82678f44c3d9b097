"""What exponent a short series has of itself: alpha of simulated noise of known H, inverted.

DFA of a short series is biased. Fractional Gaussian noise (alpha = H) and fractional Brownian motion (alpha = H + 1)
of the same length, analysed with the same scales and order, give the mean and the quantiles of alpha for every true
exponent; the inverted mean curve gives the debiased exponent, the inverted quantile curves its confidence interval
(Neyman). Fractional Brownian motion of H below 0.3 is left out, for in short series it passes for noise; between the
two families the curves are interpolated. Nothing is clipped: what lies outside the simulated exponents has none.
"""

import functools
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.dfa import dfa
from posthoc.analysis.kernels import cache_folder
from posthoc.errors import PosthocError, UsageError
from posthoc.files import replacing

FloatArray = NDArray[np.float64]
NOISE = np.round(np.arange(0.02, 1, 0.04), 2)
MOTION = np.round(np.arange(1.30, 2, 0.04), 2)
GRID = np.concatenate([NOISE, MOTION])
LEVEL = 0.95


def fractional_gaussian_noise(H: float, T: int, count: int, random: np.random.Generator) -> FloatArray:
    """Exact samples [count, T] of unit-variance fractional Gaussian noise (Davies and Harte 1987).

    The autocovariance, wrapped around a circle of 2 T points, has a non-negative spectrum for every H in (0, 1);
    random amplitudes with that spectrum, transformed back, have exactly that autocovariance.
    """
    if not 0 < H < 1:
        raise UsageError(f"H is {H}; fractional Gaussian noise has an H between 0 and 1.")
    k = np.arange(T + 1)
    covariance = 0.5 * ((k + 1.0) ** (2 * H) - 2.0 * k ** (2 * H) + np.abs(k - 1.0) ** (2 * H))
    spectrum = np.fft.rfft(np.concatenate([covariance, covariance[-2:0:-1]])).real
    weight = np.sqrt(np.maximum(spectrum, 0) * T)  # rounding may leave -1e-17
    real, imaginary = random.standard_normal((2, count, T + 1))
    amplitude = (real + 1j * imaginary) * weight
    amplitude[:, [0, T]] = real[:, [0, T]] * weight[[0, T]] * np.sqrt(2)
    return np.asarray(np.fft.irfft(amplitude, n=2 * T, axis=1)[:, :T])


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
    key = repr((1, T, scales, order, fluctuation, _series(T), LEVEL, GRID.tolist()))
    folder = cache_folder()
    path = folder / f"calibration-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz" if folder else None
    if path and (stored := _read(path)):
        return stored
    found = _simulate(T, scales, order, fluctuation)
    if path:
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **vars(found))
        except PosthocError:  # a cache that cannot be written is done without
            return found
    return found


def _read(path: Path) -> Calibration | None:
    try:
        with np.load(path) as pack:
            return Calibration(**{name: pack[name] for name in pack.files})
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):  # absent or spoilt: simulated again
        return None


def _simulate(T: int, scales: tuple[int, ...], order: int, fluctuation: str) -> Calibration:
    alpha = np.empty((len(GRID), _series(T)))
    for g, exponent in enumerate(GRID):
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([T, g])))
        step = max(1, 2**22 // T)  # no more in memory at once
        for first in range(0, _series(T), step):
            some = slice(first, min(first + step, _series(T)))
            noise = fractional_gaussian_noise(exponent % 1, T, some.stop - first, random)
            series = np.cumsum(noise, axis=1) if exponent > 1 else noise
            alpha[g, some] = dfa(series, scales, order=order, fluctuation=fluctuation).alpha
    low, high = np.quantile(alpha, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    return Calibration(GRID, *(_rising(curve) for curve in (alpha.mean(axis=1), low, high)))


def _rising(curve: FloatArray) -> FloatArray:
    """The curve [G] freed of its sampling noise, by a polynomial for each family, and never falling, to be inverted."""
    parts = []
    for exponents, values in ((NOISE, curve[: len(NOISE)]), (MOTION, curve[len(NOISE) :])):
        parts.append(np.polynomial.Chebyshev.fit(exponents, values, 5)(exponents))
    return np.asarray(np.maximum.accumulate(np.concatenate(parts)))


def _series(T: int) -> int:
    """How many to simulate for each exponent: the longer, the less they scatter."""
    return int(np.clip(2**20 // T, 100, 20_000))
