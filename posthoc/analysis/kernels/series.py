"""The image axis, a row at a time: label sort, class centring and moving mean in one pass; shuffling within classes."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import jit

ROUNDINGS = 16
ROUNDING = ROUNDINGS * np.finfo(np.float64).eps
AT_ONCE = 4
"""Rows that are handled together."""


@jit()
def centre_and_smooth(
    first_row: int,
    last_row: int,
    x: NDArray[np.floating],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    smooth: int,
    out: FloatArray,
) -> None:
    """Fill rows of out [U, N] with those of x [U, N] in the given order, each class centred, then averaged over `smooth` neighbours.

    order: the images sorted by class; starts [K + 1]: where each class begins in it. At the edges the window shrinks.
    A row whose values differ from their class means by rounding alone, in the type it comes in, becomes exactly zero.
    """
    rounding = ROUNDINGS * np.finfo(x.dtype).eps
    N = x.shape[1]
    behind = smooth // 2
    ahead = smooth - behind - 1
    centred = np.empty((AT_ONCE, N))
    for begin in range(first_row, last_row, AT_ONCE):
        begin = max(first_row, min(begin, last_row - AT_ONCE))  # the last rows twice rather than fewer at once
        rows = min(AT_ONCE, last_row - begin)
        for r in range(rows):
            for t in range(N):
                centred[r, t] = x[begin + r, order[t]]
        finite, peak = _centre_classes(centred, starts)
        for r in range(rows):
            row = out[begin + r]
            _moving_mean(centred[r], behind, ahead, row)
            if finite[r] and largest(row) <= rounding * peak[r]:
                row[:] = 0.0


@jit(forceinline=True)
def _centre_classes(x: FloatArray, starts: NDArray[np.int64]) -> tuple[NDArray[np.bool_], FloatArray]:
    """Take each class's mean from the rows of x [AT_ONCE, N], in place; whether their sums are finite, and their largest
    values. Four sums at once, for each addition waits for the last."""
    finite, peak = np.ones(AT_ONCE, np.bool_), np.empty(AT_ONCE)
    for r in range(AT_ONCE):
        peak[r] = largest(x[r])
    for k in range(len(starts) - 1):
        first, last = starts[k], starts[k + 1]
        a = b = c = d = 0.0
        for t in range(first, last):
            a += x[0, t]
            b += x[1, t]
            c += x[2, t]
            d += x[3, t]
        for r, total in ((0, a), (1, b), (2, c), (3, d)):
            finite[r] &= math.isfinite(total)
            mean = total / (last - first)
            for t in range(first, last):
                x[r, t] -= mean
    return finite, peak


@jit(forceinline=True)
def _moving_mean(x: FloatArray, behind: int, ahead: int, out: FloatArray) -> None:
    """Fill out [N] with the mean of x [N] over so many neighbours before and after, as many as there are at the edges.

    Each sum is taken in the order of time, those of all points together.
    """
    N = len(x)
    inner, width = N - behind - ahead, behind + ahead + 1
    edge = min(behind, N)
    for begin, end in ((0, edge), (max(edge, N - ahead), N)):
        for t in range(begin, end):
            first, last = max(0, t - behind), min(N, t + ahead + 1)
            total = 0.0
            for s in range(first, last):
                total += x[s]
            out[t] = total / (last - first)
    if inner > 0:
        middle = out[behind : behind + inner]
        middle[:] = 0.0
        for shift in range(width):
            part = x[shift : shift + inner]
            for t in range(inner):
                middle[t] += part[t]
        for t in range(inner):
            middle[t] /= width


@jit(forceinline=True)
def largest(x: FloatArray) -> float:
    """The largest absolute value of a finite series."""
    a = b = c = d = 0.0
    quarter = len(x) // 4
    parts = x[: 4 * quarter].reshape(4, quarter)
    for t in range(quarter):
        p, q, r, s = abs(parts[0, t]), abs(parts[1, t]), abs(parts[2, t]), abs(parts[3, t])
        a = p if p > a else a
        b = q if q > b else b
        c = r if r > c else c
        d = s if s > d else d
    for t in range(4 * quarter, len(x)):
        a = max(a, abs(x[t]))
    return max(a, b, c, d)


@jit()
def shuffle_within(x: NDArray[np.floating], starts: NDArray[np.int64], uniform: FloatArray) -> None:
    """Permute each row of x [U, N] in place within starts[k] .. starts[k + 1], by the random numbers uniform [U, N].

    Fisher and Yates's shuffle: uniform, in 0..1, says which of the values not yet placed comes next.
    """
    for u in range(len(x)):
        row, chance = x[u], uniform[u]
        for k in range(len(starts) - 1):
            first = starts[k]
            for t in range(starts[k + 1] - 1, first, -1):
                s = first + int(chance[t] * (t - first + 1))
                row[s], row[t] = row[t], row[s]
