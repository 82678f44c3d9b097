"""Products of matrices without BLAS, whose own threads, started from each of ours, wait for each other at full load."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from posthoc.analysis.kernels import in_threads, jit

BLOCK = 512


@jit(fastmath={"contract"})
def _rows(first: int, last: int, a: NDArray[np.floating], b: NDArray[np.floating], out: NDArray[np.floating]) -> None:
    """Fill rows `first` to `last` of out [U, T] with those of a [U, K] times b [K, T], a block of columns at a time."""
    for start in range(0, b.shape[1], BLOCK):
        length = min(BLOCK, b.shape[1] - start)
        for u in range(first, last):
            row = out[u, start : start + length]
            row[:] = 0
            for k in range(a.shape[1]):
                factor, other = a[u, k], b[k, start : start + length]
                for t in range(length):
                    row[t] += factor * other[t]


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """a [U, K] times b [K, T], both float32 or both float64; sums are over k in their order, whatever the threads."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    out = np.empty((len(a), b.shape[1]), dtype=a.dtype)
    in_threads(lambda first, last: _rows(first, last, a, b, out), len(a))
    return out
