"""Detrended fluctuation analysis of many series at once (Peng et al. 1994).

Each series is handled by one thread from start to end, so results depend neither on the number of threads nor on what
else is in the batch.
"""

import math

import numpy as np
from numba import prange
from numpy.typing import NDArray

from posthoc.analysis.kernels import REORDER, jit

LIVE, CONSTANT, NON_FINITE, NO_FLUCTUATION = 0, 1, 2, 3

# Below this share of the window's sum of squares the one-pass residual has lost digits to cancellation.
CANCELLED = 1e-6
ROUNDING = 8 * np.finfo(np.float64).eps


@jit()
def _power_of_two(peak: float) -> float:
    """The power of two that brings `peak` near 1, bounded so that it and its product stay finite."""
    exponent = math.frexp(peak)[1]
    return math.ldexp(1.0, max(-1000, min(1000, -exponent)))


@jit(fastmath=set(REORDER))
def profile(x: NDArray[np.floating], y: NDArray[np.float64]) -> int:
    """Write the cumulative sum of the centred, scaled series x [T] to y [T]; LIVE, CONSTANT or NON_FINITE.

    The series is scaled by a power of two, which costs no digit and keeps squares from over- and underflow.
    """
    T = len(x)
    low = high = float(x[0])
    finite = True
    for t in range(T):
        value = float(x[t])
        finite &= math.isfinite(value)
        low = min(low, value)
        high = max(high, value)
    if not finite:
        return NON_FINITE
    peak = max(abs(low), abs(high))
    if not high / 2 - low / 2 > ROUNDING * (peak / 2):
        return CONSTANT
    scale = _power_of_two(peak)
    middle = 0.5 * (low * scale + high * scale)
    total = 0.0
    for t in range(T):
        total += x[t] * scale - middle
    mean = total / T
    # What is left of a large offset may be tiny; scaled again, its squares stay in range.
    again = _power_of_two(high * scale - low * scale)
    # Four partial sums at once, for each addition waits for the one before it.
    quarter = T // 4
    a = b = c = d = 0.0
    for t in range(quarter):
        a += (x[t] * scale - middle - mean) * again
        b += (x[t + quarter] * scale - middle - mean) * again
        c += (x[t + 2 * quarter] * scale - middle - mean) * again
        d += (x[t + 3 * quarter] * scale - middle - mean) * again
        y[t] = a
        y[t + quarter] = b
        y[t + 2 * quarter] = c
        y[t + 3 * quarter] = d
    before = a
    for t in range(quarter, 2 * quarter):
        y[t] += before
    before += b
    for t in range(2 * quarter, 3 * quarter):
        y[t] += before
    before += c
    for t in range(3 * quarter, 4 * quarter):
        y[t] += before
    before += d
    for t in range(4 * quarter, T):
        before += (x[t] * scale - middle - mean) * again
        y[t] = before
    return LIVE


@jit(fastmath=set(REORDER))
def residual(y: NDArray[np.float64], ramp: NDArray[np.float64]) -> float:
    """Sum of squares of y [s] about its least-squares line; `ramp` [s] is the centred time, k - (s - 1) / 2."""
    s = len(y)
    ramp_square = s * (s * s - 1.0) / 12.0
    start = y[0]
    level = slope = square = 0.0
    for k in range(s):
        value = y[k] - start
        level += value
        slope += ramp[k] * value
        square += value * value
    left = square - level * level / s - slope * slope / ramp_square
    if left > CANCELLED * square:
        return left
    level /= s
    slope /= ramp_square
    left = 0.0
    for k in range(s):
        value = (y[k] - start - level) - slope * ramp[k]
        left += value * value
    return left


@jit(parallel=True, fastmath=set(REORDER))
def fluctuation(
    x: NDArray[np.floating], scales: NDArray[np.int64], published: bool, F: NDArray[np.float64], state: NDArray[np.int8]
) -> None:
    """Fill F [U, S], the fluctuation of each series x [U, T] at each scale, and state [U], why a row has no exponent.

    `published`: the mean over windows of the window's RMS residual; else the root of the mean squared residual over
    all windows (Peng et al. 1994). Windows do not overlap and start at the first point. NO_FLUCTUATION: at some scale
    the profile leaves its lines by no more than rounding, as that of a channel that is zero but for one last image.
    """
    U, T = x.shape
    for u in prange(U):
        y = np.empty(T)
        state[u] = profile(x[u], y)
        if state[u] != LIVE:
            F[u] = np.nan
        else:
            peak = max(y.max(), -y.min())
            for j in range(len(scales)):
                s = scales[j]
                ramp = np.arange(s) - (s - 1) / 2.0
                count = T // s
                total = 0.0
                for w in range(count):
                    left = residual(y[w * s : (w + 1) * s], ramp)
                    total += math.sqrt(left / s) if published else left / s
                F[u, j] = total / count if published else math.sqrt(total / count)
                if not F[u, j] > ROUNDING * peak:
                    state[u] = NO_FLUCTUATION
