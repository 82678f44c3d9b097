"""Products of matrices without BLAS, whose own threads, started from each of ours, wait for each other at full load."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.kernels import in_threads, jit

BLOCK = 512
AT_ONCE = 8
"""Rows of the second factor that are added to a sum before it is stored."""


@jit(fastmath={"contract"})
def _rows(first: int, last: int, a: NDArray[np.floating], b: NDArray[np.floating], out: NDArray[np.floating]) -> None:
    """Fill rows `first` to `last` of out [U, T] with those of a [U, K] times b [K, T], a block of columns at a time."""
    together = a.shape[1] // AT_ONCE * AT_ONCE
    for start in range(0, b.shape[1], BLOCK):
        end = min(b.shape[1], start + BLOCK)
        out[first:last, start:end] = 0
        for k in range(0, together, AT_ONCE):
            b0, b1, b2, b3 = b[k, start:end], b[k + 1, start:end], b[k + 2, start:end], b[k + 3, start:end]
            b4, b5, b6, b7 = b[k + 4, start:end], b[k + 5, start:end], b[k + 6, start:end], b[k + 7, start:end]
            for u in range(first, last):
                row = out[u, start:end]
                a0, a1, a2, a3 = a[u, k], a[u, k + 1], a[u, k + 2], a[u, k + 3]
                a4, a5, a6, a7 = a[u, k + 4], a[u, k + 5], a[u, k + 6], a[u, k + 7]
                for t in range(end - start):
                    total = row[t] + a0 * b0[t] + a1 * b1[t] + a2 * b2[t] + a3 * b3[t]
                    row[t] = total + a4 * b4[t] + a5 * b5[t] + a6 * b6[t] + a7 * b7[t]
        for k in range(together, a.shape[1]):
            for u in range(first, last):
                factor, row, other = a[u, k], out[u, start:end], b[k, start:end]
                for t in range(end - start):
                    row[t] += factor * other[t]


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """a [U, K] times b [K, T], both float32 or both float64; sums are over k in their order, whatever the threads."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    out = np.empty((len(a), b.shape[1]), dtype=a.dtype)
    in_threads(lambda first, last: _rows(first, last, a, b, out), len(a))
    return out
