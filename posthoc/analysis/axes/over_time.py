"""Redrawing series over time, on the axes whose points are in an order: depth, epoch and token."""

import numpy as np

from posthoc.analysis.arrays import FloatArray


def gaussian(x: FloatArray, random: np.random.Generator) -> FloatArray:
    """Gaussian noise, independent from point to point, with the covariance that the units x [U, T] have over time."""
    from posthoc.analysis.kernels.products import product

    centred = x - x.mean(axis=1, keepdims=True)
    return np.asarray(product(centred, random.standard_normal((x.shape[1], x.shape[1]))) / np.sqrt(x.shape[1]))


def permuted(x: FloatArray, random: np.random.Generator) -> FloatArray:
    """The points in time of x [U, T] in another order, the same for all units."""
    return x[:, random.permutation(x.shape[1])]


def phases_randomised(x: FloatArray, random: np.random.Generator) -> FloatArray:
    """Each unit of x [U, T] with its spectrum's phases at random."""
    return _turned(x, random, len(x))


def phases_turned_together(x: FloatArray, random: np.random.Generator) -> FloatArray:
    """The units of x [U, T] with the phases of each frequency turned by one random angle, the same for all: what units
    have in common at every frequency stays (Prichard and Theiler 1994)."""
    return _turned(x, random, 1)


def _turned(x: FloatArray, random: np.random.Generator, rows: int) -> FloatArray:
    """Series with their spectra turned by random angles, by `rows` of them: one for each unit, or one for all."""
    spectrum = np.fft.rfft(x, axis=1)
    turned = spectrum * np.exp(2j * np.pi * random.random((rows, spectrum.shape[1])))
    turned[:, 0] = spectrum[:, 0]
    if x.shape[1] % 2 == 0:  # real by definition: it can only change its sign
        turned[:, -1] = spectrum[:, -1] * random.choice([-1.0, 1.0], rows)
    return np.fft.irfft(turned, n=x.shape[1], axis=1)
