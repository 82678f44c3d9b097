"""In which precision arrays are stored: half of single, where rounding is far below what a channel varies by."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from posthoc.spool import Spooled, pieces

ROUNDING = 0.01
"""Of a channel's standard deviation: what rounding may add to a signal."""


class Survey(NamedTuple):
    """Of an array: the type that it is stored in, and how many values are NaN or infinite."""

    dtype: np.dtype[Any]
    nonfinite: int


def survey(array: NDArray[Any] | Spooled, halved: bool = False) -> Survey:
    """How an array is stored, a signal [C, N, T] that may be `halved` in half precision where that adds less than
    `ROUNDING` of every channel's standard deviation.

    >>> survey(np.array([[[1.0, 2.0, 4.0]]], "f4"), True).dtype, survey(np.array([[[4096.0, 4097.0, 4099.0]]], "f4"), True).dtype
    (dtype('float16'), dtype('float32'))
    """
    if array.dtype.kind != "f":
        return Survey(array.dtype, 0)
    nonfinite, count, start, sums = 0, 0, None, np.zeros((4, array.shape[0]))
    for piece in pieces(array):
        nonfinite += int(np.count_nonzero(~np.isfinite(piece)))
        if halved:
            with np.errstate(over="ignore", invalid="ignore"):
                error = piece.astype(np.float16) - piece
                start = piece.mean((1, 2), dtype="f8", keepdims=True) if start is None else start
                for k, values in enumerate((error.astype("f8"), piece - start)):
                    sums[2 * k] += values.sum((1, 2))
                    sums[2 * k + 1] += np.square(values, out=values).sum((1, 2))
            count += math.prod(piece.shape[1:])
    if not halved:
        return Survey(array.dtype, nonfinite)
    with np.errstate(invalid="ignore"):
        mean, square = sums.reshape(2, 2, -1).swapaxes(0, 1) / count
        error, spread = square - mean**2
        fits = (error <= ROUNDING**2 * spread).all()
    return Survey(np.dtype(np.float16 if fits else np.float32), nonfinite)
