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
TAPS = 5
"""Neighbours that are added to a moving mean before it is stored."""


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
    centred, finite = np.empty((AT_ONCE, x.shape[1])), np.empty(AT_ONCE, np.bool_)
    for begin in range(first_row, last_row, AT_ONCE):
        begin = max(first_row, min(begin, last_row - AT_ONCE))  # the last rows twice rather than fewer at once
        _centre_classes(x, begin, last_row - 1, order, starts, centred, finite)
        for r in range(min(AT_ONCE, last_row - begin)):
            row = out[begin + r]
            _moving_mean(centred[r], smooth, row)
            if finite[r] and largest(row) <= rounding * largest(x[begin + r]):
                row[:] = 0.0


@jit()
def reorder_and_smooth(
    first_row: int,
    last_row: int,
    centred: FloatArray,
    least: FloatArray,
    order: NDArray[np.int64],
    smooth: int,
    out: FloatArray,
) -> None:
    """As `centre_and_smooth`, of rows [U, N] of which each class is centred already, in the given order [N].

    least: what is rounding alone in each row [U], see `rounding_of`.
    """
    N = centred.shape[1]
    row = np.empty(N)
    for u in range(first_row, last_row):
        of_unit = centred[u]
        for t in range(N):
            row[t] = of_unit[order[t]]
        _moving_mean(row, smooth, out[u])
        if least[u] >= 0 and largest(out[u]) <= least[u]:
            out[u][:] = 0.0


@jit(forceinline=True)
def _centre_classes(
    x: NDArray[np.floating],
    begin: int,
    end: int,
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
    out: FloatArray,
    finite: NDArray[np.bool_],
) -> None:
    """Fill out [AT_ONCE, N] with the rows of x from `begin` on (`end` again in place of those after it), in the given order,
    less each class's mean; finite [AT_ONCE]: whether all sums are. Four sums at once, for each addition waits for the last."""
    finite[:] = True
    p, q, r, s = x[begin], x[min(begin + 1, end)], x[min(begin + 2, end)], x[min(begin + 3, end)]
    for k in range(len(starts) - 1):
        first, last = starts[k], starts[k + 1]
        a = b = c = d = 0.0
        for t in range(first, last):
            n = order[t]
            e, f, g, h = float(p[n]), float(q[n]), float(r[n]), float(s[n])
            out[0, t] = e
            out[1, t] = f
            out[2, t] = g
            out[3, t] = h
            a += e
            b += f
            c += g
            d += h
        for row, total in ((0, a), (1, b), (2, c), (3, d)):
            finite[row] &= math.isfinite(total)
            mean = total / (last - first)
            for t in range(first, last):
                out[row, t] -= mean


@jit(forceinline=True)
def _moving_mean(x: FloatArray, width: int, out: FloatArray) -> None:
    """Fill out [N] with the mean of x [N] over the `width` neighbours of each point, as many as there are at the edges.

    Each sum is taken in the order of time, those of all points together.
    """
    N = len(x)
    behind = width // 2
    ahead = width - behind - 1
    edge = min(behind, N)
    for begin, end in ((0, edge), (max(edge, N - ahead), N)):
        for t in range(begin, end):
            first, last = max(0, t - behind), min(N, t + ahead + 1)
            total = 0.0
            for s in range(first, last):
                total += x[s]
            out[t] = total / (last - first)
    inner = N - width + 1
    if inner > 0:
        middle = out[behind : behind + inner]
        middle[:] = 0.0
        together = width // TAPS * TAPS
        for k in range(0, together, TAPS):
            a, b, c = x[k : k + inner], x[k + 1 : k + 1 + inner], x[k + 2 : k + 2 + inner]
            d, e = x[k + 3 : k + 3 + inner], x[k + 4 : k + 4 + inner]
            for t in range(inner):
                middle[t] = middle[t] + a[t] + b[t] + c[t] + d[t] + e[t]
        for k in range(together, width):
            a = x[k : k + inner]
            for t in range(inner):
                middle[t] += a[t]
        for t in range(inner):
            middle[t] /= width


@jit(forceinline=True, fastmath={"nnan", "nsz"})
def largest(x: NDArray[np.floating]) -> float:
    """The largest absolute value of a finite series; of others it may be anything."""
    most = abs(x[0])
    for t in range(len(x)):
        value = abs(x[t])
        most = value if value > most else most
    return float(most)


@jit()
def rounding_of(x: NDArray[np.floating], centred: FloatArray, least: FloatArray) -> None:
    """Fill least [U] with what is rounding alone in rows of x [U, N], which less their classes' means are `centred`; -1 of
    those that are not finite."""
    for u in range(len(x)):
        total = 0.0
        for t in range(x.shape[1]):
            total += centred[u, t]
        least[u] = ROUNDINGS * np.finfo(x.dtype).eps * largest(x[u]) if math.isfinite(total) else -1.0


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
