"""Phase synchrony of many series: the analytic signal by real Fourier transforms, phases without angles."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import REORDER, jit
from posthoc.analysis.kernels.dfa import centre

BLOCK = 256
"""Points in time of which the sums of halves stay in the processor's nearest memory."""
AT_ONCE = 4
"""Units that are added to a sum before it is stored."""


@jit()
def centre_rows(
    first: int, last: int, x: NDArray[np.floating], rounding: float, out: FloatArray, state: NDArray[np.int8]
) -> None:
    """Fill rows of out [U, T] with those of x [U, T], centred and scaled to about 1, and state [U] (`centre`).

    rounding: within which share of its largest value a row is constant.
    """
    for u in range(first, last):
        row = out[u]
        state[u], mean, _ = centre(x[u], rounding, row)
        for t in range(len(row)):
            row[t] -= mean


@jit()
def turn(spectrum: NDArray[np.complex128], T: int) -> None:
    """Turn the spectra [U, T // 2 + 1] of series of T real points into those of their Hilbert transforms, in place."""
    for row in spectrum:
        row[0] = 0.0
        for k in range(1, (T + 1) // 2):
            row[k] = complex(row[k].imag, -row[k].real)
        row[(T + 1) // 2 :] = 0.0  # the frequency of alternating signs that an even T has


@jit(fastmath=set(REORDER))
def unit_phases(x: FloatArray, h: FloatArray, sums: FloatArray) -> None:
    """Divide z = x + i h, both [U, T], by its length, in place, and fill sums [2, T] with the sums over the units."""
    U, T = x.shape
    sums[:] = 0.0
    cosine, sine = sums
    for u in range(U):
        row, transform = x[u], h[u]
        for t in range(T):
            a, b = row[t], transform[t]
            square = a * a + b * b
            inverse = 1.0 / math.sqrt(square) if square > 0.0 else 0.0
            row[t] = a * inverse if square > 0.0 else 1.0  # the angle of 0 is 0
            transform[t] = b * inverse
        for t in range(T):
            cosine[t] += row[t]
        for t in range(T):
            sine[t] += transform[t]


@jit(fastmath=set(REORDER))
def add_halves(x: FloatArray, h: FloatArray, halves: FloatArray, sums: FloatArray) -> None:
    """Add to sums [2, K, T] those of x and of h, both [U, T], over the units of each half.

    halves: [K, U], 1 for the units of a half, 0 for the rest.
    """
    U, T = x.shape
    chosen = np.empty(U, np.int64)
    for start in range(0, T, BLOCK):
        end = min(T, start + BLOCK)
        for k in range(len(halves)):
            count = 0
            for u in range(U):
                if halves[k, u] > 0:
                    chosen[count] = u
                    count += 1
            together = count // AT_ONCE * AT_ONCE
            for part in range(2):
                values = x if part == 0 else h
                total = sums[part, k, start:end]
                for j in range(0, together, AT_ONCE):
                    a, b = values[chosen[j], start:end], values[chosen[j + 1], start:end]
                    c, d = values[chosen[j + 2], start:end], values[chosen[j + 3], start:end]
                    for t in range(end - start):
                        total[t] += a[t] + b[t] + c[t] + d[t]
                for j in range(together, count):
                    a = values[chosen[j], start:end]
                    for t in range(end - start):
                        total[t] += a[t]


@jit(fastmath=set(REORDER))
def spread_of_halves(sums: FloatArray, of_halves: FloatArray, spread: FloatArray) -> None:
    """Fill spread [2, K] with the standard deviation over time of the length of a sum of phases, of each half and of the rest.

    sums: [2, T], the cosines and sines of all units; of_halves: [2, K, T], those of each half.
    """
    _, K, T = of_halves.shape
    length = np.empty(T)
    for k in range(K):
        for rest in range(2):
            for t in range(T):
                a, b = of_halves[0, k, t], of_halves[1, k, t]
                if rest:
                    a, b = sums[0, t] - a, sums[1, t] - b
                length[t] = math.sqrt(a * a + b * b)
            mean = square = 0.0
            for t in range(T):
                mean += length[t]
            mean /= T
            for t in range(T):
                square += (length[t] - mean) ** 2
            spread[rest, k] = math.sqrt(square / T)
