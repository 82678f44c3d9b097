"""Detrended fluctuation analysis of many series at once (Peng et al. 1994).

Each series is handled by one thread from start to end, so results depend neither on the number of threads nor on what
else is in the batch.

Accuracy: the series is centred before it is summed, so an offset costs what its own rounding has already taken. A
window's squared residual is first taken as a difference of sums about the window's first point, in one pass; where
less than CANCELLED of the sum of squares is left, digits have been lost, and the residuals are formed one by one
instead. Either way its relative error stays below about 1e-10 of what rounding of the profile itself leaves.
"""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import ROUNDING, FloatArray
from posthoc.analysis.kernels import REORDER, jit

LIVE = 0
CONSTANT = 1
NON_FINITE = 2
NO_FLUCTUATION = 3

CANCELLED = 1e-5


@jit(forceinline=True)
def _power_of_two(peak: float) -> int:
    """The exponent of the power of two that brings `peak` near 1, bounded so that it and its product stay finite."""
    exponent = math.frexp(peak)[1]
    return max(-1000, min(1000, -exponent))


@jit(forceinline=True, fastmath=set(REORDER))
def _is_finite(x: NDArray[np.floating]) -> bool:
    """Whether no value is NaN or infinite; 0 * x is NaN for those, and the sum is SIMD."""
    total = 0.0
    for t in range(len(x)):
        total += 0.0 * float(x[t])
    return total == 0.0


@jit(forceinline=True)
def _extremes(x: NDArray[np.floating]) -> tuple[float, float]:
    """Smallest and largest value of a finite series; four of each at once, for each comparison waits for the last."""
    quarter = len(x) // 4
    low = high = float(x[0])
    a, b, c, d = low, low, low, low
    e, f, g, h = low, low, low, low
    parts = x[: 4 * quarter].reshape(4, quarter)
    for t in range(quarter):
        p, q, r, s = float(parts[0, t]), float(parts[1, t]), float(parts[2, t]), float(parts[3, t])
        a = p if p < a else a
        b = q if q < b else b
        c = r if r < c else c
        d = s if s < d else d
        e = p if p > e else e
        f = q if q > f else f
        g = r if r > g else g
        h = s if s > h else h
    for t in range(4 * quarter, len(x)):
        low = min(low, float(x[t]))
        high = max(high, float(x[t]))
    return min(low, a, b, c, d), max(high, e, f, g, h)


@jit(forceinline=True, fastmath=set(REORDER))
def centre(x: NDArray[np.floating], rounding: float, out: FloatArray) -> tuple[int, float, int]:
    """Write the series x [T], scaled and nearly centred, to `out`.

    Returns LIVE, CONSTANT or NON_FINITE; the mean that is left; and the exponent of the power of two by which `out` is
    scaled. Such powers cost no digit and keep squares from over- and underflow: first by the largest value of the
    series, then by what is left of it once centred, which under a large offset may be tiny. rounding: within which
    share of its largest value a series is constant.
    """
    if not _is_finite(x):
        return NON_FINITE, 0.0, 0
    low, high = _extremes(x)
    peak = max(abs(low), abs(high))
    if not high / 2 - low / 2 > rounding * (peak / 2):
        return CONSTANT, 0.0, 0
    to_peak = _power_of_two(peak)
    first = math.ldexp(1.0, to_peak)
    middle = 0.5 * (low * first + high * first)
    to_range = _power_of_two(high * first - low * first)
    second = math.ldexp(1.0, to_range)
    total = 0.0
    for t in range(len(x)):
        out[t] = (float(x[t]) * first - middle) * second
        total += out[t]
    return LIVE, total / len(x), to_peak + to_range


@jit(forceinline=True, fastmath=set(REORDER))
def profile(x: NDArray[np.floating], rounding: float, y: FloatArray) -> tuple[int, int]:
    """Write the cumulative sum of the centred, scaled series x [T] to y [T]; its state and power of two (`centre`)."""
    T = len(x)
    state, mean, power = centre(x, rounding, y)
    if state != LIVE:
        return state, power
    # Four partial sums at once, for each addition waits for the one before it.
    quarter = T // 4
    parts = y[: 4 * quarter].reshape(4, quarter)
    a = b = c = d = 0.0
    for t in range(quarter):
        a += parts[0, t] - mean
        b += parts[1, t] - mean
        c += parts[2, t] - mean
        d += parts[3, t] - mean
        parts[0, t] = a
        parts[1, t] = b
        parts[2, t] = c
        parts[3, t] = d
    before = a
    for part, total in ((1, b), (2, c), (3, d)):
        for t in range(quarter):
            parts[part, t] += before
        before += total
    for t in range(4 * quarter, T):
        before += y[t] - mean
        y[t] = before
    return LIVE, power


@jit(forceinline=True, fastmath=set(REORDER))
def line_residuals(windows: FloatArray, ramp: FloatArray, left: FloatArray) -> None:
    """Fill left [n] with the sum of squares of each window [n, s] about its least-squares line.

    ramp [s]: the line of unit length that is orthogonal to the constant.
    """
    n, s = windows.shape
    for w in range(n):
        start = windows[w, 0]
        level = slope = square = 0.0
        for k in range(s):
            value = windows[w, k] - start
            level += value
            slope += ramp[k] * value
            square += value * value
        left[w] = square - level * level / s - slope * slope
        if not left[w] > CANCELLED * square:
            level /= s
            left[w] = 0.0
            for k in range(s):
                value = (windows[w, k] - start - level) - slope * ramp[k]
                left[w] += value * value


@jit(forceinline=True, fastmath=set(REORDER))
def polynomial_residuals(windows: FloatArray, basis: FloatArray, left: FloatArray) -> None:
    """Fill left [n] with the sum of squares of each window [n, s] about its least-squares polynomial.

    basis [order, s]: orthonormal polynomials of degree 1 to `order`, orthogonal to the constant.
    """
    n, s = windows.shape
    residual = np.empty(s)
    for w in range(n):
        start = windows[w, 0]
        level = 0.0
        for k in range(s):
            residual[k] = windows[w, k] - start
            level += residual[k]
        level /= s
        for k in range(s):
            residual[k] -= level
        for degree in range(len(basis)):
            weight = 0.0
            for k in range(s):
                weight += basis[degree, k] * residual[k]
            for k in range(s):
                residual[k] -= weight * basis[degree, k]
        left[w] = 0.0
        for k in range(s):
            left[w] += residual[k] * residual[k]


@jit(forceinline=True)
def cut(y: FloatArray, s: int, step: int) -> FloatArray:
    """The windows [n, s] of y that start at 0, step, 2 step, ...: a view where they tile it, else a copy."""
    n = (len(y) - s) // step + 1
    if step == s:
        return y[: n * s].reshape(n, s)
    windows = np.empty((n, s))
    for w in range(n):
        part = y[w * step : w * step + s]
        for k in range(s):
            windows[w, k] = part[k]
    return windows


@jit(fastmath=set(REORDER))
def fluctuation(
    first_row: int,
    last_row: int,
    x: NDArray[np.floating],
    rounding: float,
    scales: NDArray[np.int64],
    steps: NDArray[np.int64],
    basis: FloatArray,
    published: bool,
    two_sided: bool,
    F: FloatArray,
    power: NDArray[np.int64],
    state: NDArray[np.int8],
) -> None:
    """Fill rows of F [U, S], the fluctuation of each series x [U, T] at each scale, and of state [U], why a series has none.

    F is that of the series times 2 ** power [U]. rounding: within which share of its largest value a series is constant.

    Windows of scales[j] points start every steps[j] points, from the first point on and, `two_sided`, from the last
    point back. basis [order, sum of scales]: the detrending polynomials of every scale, side by side. `published`: the
    mean over windows of the window's RMS residual; else the root of the mean squared residual over all windows.
    NO_FLUCTUATION: at some scale the profile leaves its polynomials by no more than rounding, as that of a channel
    which is zero but for one last image.
    """
    T = x.shape[1]
    y = np.empty(T)
    most = 0
    for j in range(len(scales)):
        most = max(most, (T - scales[j]) // steps[j] + 1)
    left = np.empty(most)
    for u in range(first_row, last_row):
        state[u], power[u] = profile(x[u], rounding, y)
        if state[u] != LIVE:
            F[u] = np.nan
        else:
            square = 0.0
            for t in range(T):
                square += y[t] * y[t]
            least = ROUNDING * math.sqrt(square / T)
            F[u] = 0.0
            for side in range(2 if two_sided else 1):
                if side == 1:
                    for t in range(T // 2):
                        y[t], y[T - 1 - t] = y[T - 1 - t], y[t]
                first = 0
                for j in range(len(scales)):
                    s = scales[j]
                    windows = cut(y, s, steps[j])
                    n = len(windows)
                    if len(basis) == 1:
                        line_residuals(windows, basis[0, first : first + s], left)
                    else:
                        polynomial_residuals(windows, basis[:, first : first + s], left)
                    first += s
                    total = 0.0
                    for w in range(n):
                        total += math.sqrt(left[w] / s) if published else left[w] / s
                    F[u, j] += total / n
            for j in range(len(scales)):
                F[u, j] /= 2.0 if two_sided else 1.0
                F[u, j] = F[u, j] if published else math.sqrt(F[u, j])
                if not F[u, j] > least:
                    state[u] = NO_FLUCTUATION
