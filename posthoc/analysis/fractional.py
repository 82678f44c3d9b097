"""Exact samples of noise and motion of known exponent."""

import numpy as np

from posthoc.analysis.arrays import FloatArray
from posthoc.errors import UsageError


def noise_covariance(H: float, T: int) -> FloatArray:
    """Autocovariance of fractional Gaussian noise of unit variance at the lags 0 to T - 1."""
    k = np.arange(T)
    return np.asarray(0.5 * ((k + 1.0) ** (2 * H) - 2.0 * k ** (2 * H) + np.abs(k - 1.0) ** (2 * H)))


def arfima_covariance(d: float, T: int) -> FloatArray:
    """Autocovariance, over the variance, of white noise differenced -d times (Hosking 1981), -0.5 <= d < 0.5, [T].

    Its spectral density is (2 sin(w / 2)) ** (-2 d): a straight line in double logarithms up to the highest frequencies.
    """
    k = np.arange(1, T)
    return np.concatenate([[1.0], np.cumprod((k - 1 + d) / (k - d))])


def circulant(covariance: FloatArray, count: int, random: np.random.Generator) -> FloatArray:
    """Exact samples [count, T] of stationary Gaussian noise of the covariance at the lags 0 to T [T + 1].

    Wrapped around a circle of 2 T points (Davies and Harte 1987) the covariance has a spectrum; where that is nowhere
    negative, random amplitudes of that spectrum, transformed back, have exactly that covariance.
    """
    T = len(covariance) - 1
    spectrum = np.fft.rfft(np.concatenate([covariance, covariance[-2:0:-1]])).real
    weight = np.sqrt(np.maximum(spectrum, 0) * T)  # rounding may leave -1e-17
    real, imaginary = random.standard_normal((2, count, T + 1))
    amplitude = (real + 1j * imaginary) * weight
    amplitude[:, [0, T]] = real[:, [0, T]] * weight[[0, T]] * np.sqrt(2)
    return np.asarray(np.fft.irfft(amplitude, n=2 * T, axis=1)[:, :T])


def fractional_gaussian_noise(H: float, T: int, count: int, random: np.random.Generator) -> FloatArray:
    """Exact samples [count, T] of fractional Gaussian noise of unit variance.

    Its wrapped autocovariance has a non-negative spectrum for every H in (0, 1).
    """
    if not 0 < H < 1:
        raise UsageError(f"H is {H}; fractional Gaussian noise has an H between 0 and 1.")
    return circulant(noise_covariance(H, T + 1), count, random)


def fractional(exponent: float, T: int, count: int, random: np.random.Generator) -> FloatArray:
    """Fractional Gaussian noise of an exponent below 1, fractional Brownian motion of one from 1 to 2, [count, T]."""
    if exponent < 1:
        return fractional_gaussian_noise(exponent, T, count, random)
    return np.cumsum(fractional_gaussian_noise(exponent - 1, T, count, random), axis=1)


def arfima(exponent: float, T: int, count: int, random: np.random.Generator) -> FloatArray:
    """ARFIMA(0, d, 0) with d = exponent - 0.5, from 0 to below 2, [count, T]: of d from 0.5 on, sums of such noise."""
    if exponent < 1:
        return circulant(arfima_covariance(exponent - 0.5, T + 1), count, random)
    return np.cumsum(arfima(exponent - 1, T, count, random), axis=1)
