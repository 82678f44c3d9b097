"""Arrays of real numbers: as callers hand them over, read as they are or refused; and sums of those that are not NaN."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.errors import UsageError

FloatArray = NDArray[np.float64]
DIGITS = 6
"""Of what is stored for every layer, unit or scale; what is stored for every checkpoint is whole."""
ROUNDINGS = 8
"""Values that differ by no more than so many units in the last place of the largest of them are constant."""
ROUNDING = ROUNDINGS * float(np.finfo(np.float64).eps)
EXACT_INTEGERS = 2**53
AT_A_TIME = 2**20
"""Values of documents that are in memory at a time."""


def real_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """`values` as an array of booleans, integers or floats; `name`: what to call them in an error.

    Raises UsageError where a value is masked, complex, text or another object, or the rows differ in length: whatever
    would be changed without a word by making numbers of it.
    """
    rows = values if isinstance(values, (list, tuple)) else [values]
    try:
        if any(isinstance(row, np.ma.MaskedArray) for row in rows):
            values = np.ma.asarray(values) if rows[0] is values else np.ma.stack(rows)
        array = np.asarray(values)
    except Exception as error:  # whatever an array class throws: ragged lists, tensors that need gradients
        raise UsageError(f"{name} cannot be read as an array of numbers ({error}); give rows of one length.") from error
    if np.ma.is_masked(values):
        raise UsageError(f"{name} has masked values; leave those series out, or fill the gaps.")
    if array.dtype.kind not in "buif":
        kind = "complex numbers" if array.dtype.kind == "c" else f"values of type {array.dtype}"
        raise UsageError(f"{name} holds {kind}; expected real numbers.")
    return array


def as_series(x: ArrayLike, name: str = "x") -> tuple[NDArray[np.floating], float]:
    """Series as float32, if they were, else float64, and within which share of its largest value a series is constant.

    That is eight units in the last place, and nothing for integers, which are exact. Raises UsageError for integers
    beyond 2**53, which floating point would round, and for what `real_array` refuses.
    """
    array = real_array(name, x)
    if array.dtype == np.float32:
        return array, ROUNDINGS * float(np.finfo(np.float32).eps)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a long double beyond float64 becomes infinite, and is named so
            return array.astype(np.float64, copy=False), ROUNDING
    if array.dtype.itemsize == 8 and array.size and (array.max() > EXACT_INTEGERS or array.min() < -EXACT_INTEGERS):
        raise UsageError(
            f"{name} holds integers beyond 2**53, which rounding would change; subtract their offset first."
        )
    return array.astype(np.float64), 0.0


def whole_numbers(name: str, values: ArrayLike) -> list[int]:
    """A list of whole numbers, rising and each once. Raises UsageError for anything else, such as 4.5, NaN or text."""
    array = real_array(name, values)
    if array.ndim != 1 or array.dtype.kind == "b" or not np.isfinite(array).all() or (array != np.floor(array)).any():
        raise UsageError(f"{name} are {array.tolist()}; give a list of whole numbers.")
    return sorted({int(value) for value in array.tolist()})


def is_constant(values: FloatArray | Sequence[float]) -> bool:
    """Whether finite values are all the same up to rounding.

    >>> is_constant([0.1 + 0.2, 0.3]), is_constant([0.3, 0.31])
    (True, False)
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = array.min(), array.max()
    return bool(not high / 2 - low / 2 > ROUNDING * (max(abs(low), abs(high)) / 2))


def in_blocks(count: int, size: int) -> list[slice]:
    """So many items in slices of about `AT_A_TIME` values, of items that have `size` values each.

    >>> in_blocks(5, AT_A_TIME // 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, AT_A_TIME // max(1, size))
    return [slice(first, first + step) for first in range(0, count, step)]


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Pearson r over the epochs at which both are there; NaN with fewer than three of them, or without variation."""
    pair = np.array([a, b], dtype=float)
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    if pair.shape[1] < 3 or is_constant(pair[0]) or is_constant(pair[1]):
        return math.nan
    return float(np.corrcoef([scaled(row)[0] for row in pair])[0, 1])


def scaled(values: FloatArray) -> tuple[FloatArray, int]:
    """Finite values that spread over about 1, so that no square under- or overflows, and the power of 2 that they are to be
    multiplied with, which changes no digit.

    >>> scaled(np.array([4.0, 12.0]))
    (array([0.5, 1.5]), 3)
    """
    power = math.frexp(float(values.max() / 2 - values.min() / 2))[1]
    return np.ldexp(values, -power), power


def mean_finite(values: FloatArray) -> float:
    """Mean of what is finite; NaN where nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def sd_finite(values: FloatArray) -> float:
    """Standard deviation (ddof 1) of what is finite; NaN where fewer than two are."""
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else math.nan


def rounded(values: FloatArray) -> FloatArray:
    """To `DIGITS`, but for numbers so large that this overflows."""
    with np.errstate(over="ignore"):
        rounded = values.round(DIGITS)
    return np.where(np.isfinite(rounded), rounded, values)
