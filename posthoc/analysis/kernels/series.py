"""The image axis, a row at a time: label sort, class centring and moving mean in one pass; shuffling within classes."""

import math

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.kernels import jit

ROUNDINGS = 16
ROUNDING = ROUNDINGS * np.finfo(np.float64).eps


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
    for u in range(first_row, last_row):
        centred = np.empty(N)
        peak = 0.0
        finite = True
        for k in range(len(starts) - 1):
            total = 0.0
            for t in range(starts[k], starts[k + 1]):
                centred[t] = x[u, order[t]]
                total += centred[t]
                peak = max(peak, abs(centred[t]))
            finite &= math.isfinite(total)
            mean = total / (starts[k + 1] - starts[k])
            for t in range(starts[k], starts[k + 1]):
                centred[t] -= mean
        highest = 0.0
        for t in range(N):
            first = max(0, t - behind)
            last = min(N, t + ahead + 1)
            total = 0.0
            for s in range(first, last):
                total += centred[s]
            out[u, t] = total / (last - first)
            highest = max(highest, abs(out[u, t]))
        if finite and highest <= rounding * peak:
            out[u] = 0.0


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
