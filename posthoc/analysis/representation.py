"""The geometry of what a layer represents: spectra of its channels over the images, and similarity between layers."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.errors import UsageError
from posthoc.store import Activations

FloatArray = NDArray[np.float64]
SIGNALS = ("effective-rank", "participation-ratio")
"""What may play the part of a signal on the epoch axis: one number per layer and checkpoint."""


def singular_values(x: ArrayLike) -> FloatArray:
    """Singular values of channels x [C, N] over images, each channel centred; channels that are not finite left out."""
    x = _finite(x)
    return np.asarray(np.linalg.svd(x, compute_uv=False), dtype=np.float64) if x.size else np.zeros(0)


def effective_rank(singular_values: ArrayLike) -> float:
    """exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007); NaN where all are zero.

    >>> round(effective_rank([1, 1, 1, 0]), 6)
    3.0
    """
    s = np.asarray(singular_values, dtype=float)
    if not s.sum() > 0:
        return math.nan
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(singular_values: ArrayLike) -> float:
    """(sum of eigenvalues)^2 / sum of their squares, the eigenvalues being the squared singular values; NaN if all are 0.

    >>> participation_ratio([2, 2])
    2.0
    """
    eigenvalues = np.asarray(singular_values, dtype=float) ** 2
    squares = (eigenvalues**2).sum()
    return float(eigenvalues.sum() ** 2 / squares) if squares > 0 else math.nan


@dataclass(frozen=True)
class _Side:
    """What the debiased HSIC needs of one set of channels. x: [C, N]; diagonal, rows: of its Gram matrix, [N]."""

    x: FloatArray
    diagonal: FloatArray
    rows: FloatArray
    total: float

    @classmethod
    def of(cls, x: ArrayLike) -> "_Side":
        x = _finite(x)
        # In units of its own size, so that products of tiny or huge activations neither vanish nor overflow.
        largest = np.abs(x).max(initial=0.0)
        x = x / largest if largest > 0 else x
        diagonal = (x**2).sum(axis=0)
        sums = x.sum(axis=1)
        return cls(x, diagonal, x.T @ sums - diagonal, float(sums @ sums - diagonal.sum()))


def _hsic(a: _Side, b: _Side) -> float:
    """The unbiased estimator of HSIC with linear kernels (Song et al. 2012, eq. 5), without forming an N x N matrix."""
    n = a.x.shape[1]
    if n < 4:
        return math.nan
    trace = ((a.x @ b.x.T) ** 2).sum() - a.diagonal @ b.diagonal
    product = trace + a.total * b.total / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.rows @ b.rows)
    return float(product / (n * (n - 3)))


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of channels x [C, N] and y [D, N] over the same images, debiased.

    1 for equal representations up to rotation and scale, 0 on average for independent ones, whatever the numbers of
    channels and images (Kornblith et al. 2019; Nguyen et al. 2021), and so at times below 0. NaN where either does not
    vary. Raises UsageError for fewer than four images or different numbers of them.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or x.shape[1] < 4:
        raise UsageError(
            f"x of shape {x.shape} and y of shape {y.shape}: expected channels of the same 4 or more images."
        )
    return _alignment(_Side.of(x), _Side.of(y))


def _alignment(a: _Side, b: _Side, own: tuple[float, float] | None = None) -> float:
    first, second = own or (_hsic(a, a), _hsic(b, b))
    if not (first > 0 and second > 0):
        return math.nan
    return _hsic(a, b) / math.sqrt(first * second)


@dataclass(frozen=True)
class Representation:
    """Of every checkpoint and layer, [E, L]; similarity by debiased CKA, to the checkpoint before (NaN for the first),
    to the last, and between the layers of a checkpoint [E, L, L].
    """

    layers: tuple[str, ...]
    effective_rank: FloatArray
    participation_ratio: FloatArray
    cka_previous: FloatArray
    cka_last: FloatArray
    cka_layers: FloatArray


def representation(activations: Activations, signal: str) -> Representation:
    """The representation's geometry through training, from the stored `signal`; two checkpoints are in memory at a time."""
    E, L = len(activations), len(activations.layers)
    spectra = np.full((2, E, L), np.nan)
    previous, last, between = np.full((E, L), np.nan), np.full((E, L), np.nan), np.full((E, L, L), np.nan)
    final = _sides(activations, signal, E - 1)
    own_final = [_hsic(side, side) for side in final]
    before, own_before = final, own_final
    for e in range(E):
        layers = _layers(activations, signal, e)
        sides = [_Side.of(x) for x in layers]
        own = [_hsic(side, side) for side in sides]
        for k, x in enumerate(layers):
            s = singular_values(x)
            spectra[:, e, k] = effective_rank(s), participation_ratio(s)
            if e:
                previous[e, k] = _alignment(sides[k], before[k], (own[k], own_before[k]))
            last[e, k] = _alignment(sides[k], final[k], (own[k], own_final[k]))
        for i, j in itertools.combinations_with_replacement(range(L), 2):
            between[e, i, j] = between[e, j, i] = _alignment(sides[i], sides[j], (own[i], own[j]))
        before, own_before = sides, own
    return Representation(activations.layers, spectra[0], spectra[1], previous, last, between)


def spectral_signal(activations: Activations, name: str, rows: Sequence[int]) -> FloatArray:
    """`effective-rank` or `participation-ratio` of each layer at the checkpoints in `rows`, [L, rows]."""
    measure = effective_rank if name == "effective-rank" else participation_ratio
    signal = activations.signals[0]
    return np.array([[measure(singular_values(x)) for x in _layers(activations, signal, e)] for e in rows]).T


def _layers(activations: Activations, signal: str, row: int) -> list[FloatArray]:
    sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])
    x = activations.read(signal, row).astype(np.float64)
    return [x[a:b] for a, b in itertools.pairwise(sizes)]


def _sides(activations: Activations, signal: str, row: int) -> list[_Side]:
    return [_Side.of(x) for x in _layers(activations, signal, row)]


def _finite(x: ArrayLike) -> FloatArray:
    """The channels that are finite throughout, centred; what is rounding beside the channel's size is zero."""
    values: FloatArray = np.asarray(x, dtype=np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    centred: FloatArray = values - values.mean(axis=1, keepdims=True)
    rounding = np.abs(centred).max(axis=1, initial=0.0) <= 1e-12 * np.abs(values).max(axis=1, initial=0.0)
    centred[rounding] = 0
    return centred
