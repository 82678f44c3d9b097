"""Spectra of the weights: of how many directions each matrix makes use, and how heavy the tail of its eigenvalues is."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 4096
"""Of the shorter side of a matrix: eigenvalues take time with its cube."""


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor has a spectrum: at least two rows and columns, the axes after the first taken together."""
    return len(shape) > 1 and min(shape[0], int(np.prod(shape[1:], dtype=np.int64))) > 1


def is_small(shape: Sequence[int]) -> bool:
    """Whether the spectrum of a matrix is computed."""
    return min(shape[0], int(np.prod(shape[1:], dtype=np.int64))) <= MOST


def spectral(names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """stable_rank and hill_alpha of the tensors of these names, float64 [T]; NaN of what is no matrix, larger, or not
    finite."""
    spectra = [eigenvalues(tensors[name]) for name in names]
    return {
        "stable_rank": np.array([stable_rank(values) for values in spectra]),
        "hill_alpha": np.array([hill_alpha(values) for values in spectra]),
    }


def eigenvalues(tensor: Tensor) -> NDArray[np.float64]:
    """Those of W^T W above rounding, ascending, of a tensor taken for a matrix W [first axis, all others]; none where there
    is no spectrum."""
    nothing = np.empty(0)
    if not (is_matrix(tensor.shape) and is_small(tensor.shape)):
        return nothing
    matrix = tensor.reshape(len(tensor), -1)
    matrix = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    if not torch.isfinite(matrix).all():
        return nothing
    gram = matrix @ matrix.mH if matrix.shape[0] <= matrix.shape[1] else matrix.mH @ matrix
    try:
        values = torch.linalg.eigvalsh(gram).numpy()
    except RuntimeError:  # it does not converge
        return nothing
    return np.asarray(values[values > values[-1] * len(values) * np.finfo(np.float64).eps])


def stable_rank(values: NDArray[np.float64]) -> float:
    """The squared Frobenius norm over the squared spectral norm, of the eigenvalues of W^T W.

    >>> stable_rank(np.array([1.0, 1.0, 2.0]))
    2.0
    """
    return float(values.sum() / values[-1]) if len(values) else np.nan


def hill_alpha(values: NDArray[np.float64]) -> float:
    """The exponent of a power law for the tail of eigenvalues [n], ascending: density ~ x^-alpha from some x_min on.

    Of the n' values from x_min on alpha is 1 + n' / sum log(x / x_min), the largest likelihood, which is Hill's estimator;
    x_min is the value for which the law is nearest to the tail: with the least of the largest distances, over its values, of
    1 - (x / x_min)^(1 - alpha) and the share of the tail below x (Clauset, Shalizi & Newman 2009, equations 3.1 and 3.9, as
    in Martin & Mahoney 2021 of weights). NaN of fewer than two different values.
    """
    logs, n = np.log(values), len(values)
    below = np.searchsorted(logs, logs)  # of each value how many are smaller
    best, alpha = np.inf, np.nan
    for k in range(n - 1):
        tail = logs[k:] - logs[k]
        if below[k] < k or not tail[-1] > 0:
            continue
        slope = len(tail) / tail.sum()  # alpha - 1
        distance = np.abs(-np.expm1(-slope * tail) - (below[k:] - k) / len(tail)).max()
        if distance < best:
            best, alpha = distance, 1 + slope
    return float(alpha)
