"""The geometry of what a layer represents: spectra of its channels over the images, and similarity between layers."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray
from posthoc.analysis.records import Representation
from posthoc.analysis.scales import START
from posthoc.analysis.similarity import LEAST_CHANNELS, LEAST_IMAGES, Sample, alignment, participation_ratios
from posthoc.store import Activations

MOST_TOKENS = 2048
"""Tokens of all documents that the geometry of a layer is taken over."""


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


def representation(activations: Activations, signal: str) -> Representation:
    """The representation's geometry through training, from the stored `signal`; two checkpoints are in memory at a time.

    Of every checkpoint and layer, [E, L]; similarity by debiased CKA, to the checkpoint before (NaN for the first), to
    the last, and between the layers of a checkpoint [E, L, L]. effective_rank: of the recorded channels over these
    images. participation_ratio: of the recorded channels, participation_ratio_layer: of all channels of the layer; both
    as over any number of images. cka: of the whole layers, too (`posthoc.analysis.similarity`); cka_..._sd: its standard
    deviation over fresh images and channels. Of a layer of which fewer than four channels are recorded, but not all,
    there is no CKA.
    """
    E, L = len(activations), len(activations.layers)
    rank, recorded, layer = np.full((3, E, L), np.nan)
    previous, last, between = np.full((2, E, L), np.nan), np.full((2, E, L), np.nan), np.full((2, E, L, L), np.nan)
    final = _samples(activations, signal, E - 1)
    before = final
    for e in range(E):
        samples = _samples(activations, signal, e)
        for k, sample in enumerate(samples):
            rank[e, k] = effective_rank(sample.singular_values)
            recorded[e, k], layer[e, k] = participation_ratios(sample)
            if e:
                previous[:, e, k] = _cka(sample, before[k], same=True)
            last[:, e, k] = _cka(sample, final[k], same=True)
        for i, j in itertools.combinations_with_replacement(range(L), 2):
            between[:, e, i, j] = between[:, e, j, i] = _cka(samples[i], samples[j], same=i == j)
        before = samples
    return Representation(rank, recorded, previous[0], last[0], between[0], layer, previous[1], last[1], between[1])


def _cka(a: Sample, b: Sample, same: bool) -> tuple[float, float]:
    if a.x.shape[1] < LEAST_IMAGES or any(c.recorded < min(c.total, LEAST_CHANNELS) for c in (a, b)):
        return math.nan, math.nan
    similarity = alignment(a, b, same)
    return similarity.cka, similarity.sd


def spectral_signal(activations: Activations, name: str, rows: Sequence[int]) -> FloatArray:
    """`effective-rank` or `participation-ratio` of each layer at the checkpoints in `rows`, [L, rows]."""

    def measure(sample: Sample) -> float:
        if name == "participation-ratio":
            return participation_ratios(sample)[0]
        return effective_rank(sample.singular_values)

    return np.array([[measure(sample) for sample in _samples(activations, activations.signals[0], e)] for e in rows]).T


def _over_samples(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Signals [U, N]; of those that keep tokens [U, D, T] up to `MOST_TOKENS` tokens, evenly spread over the documents."""
    if x.ndim == 2:
        return x
    x = x[:, :, min(START, x.shape[2] - 1) :].reshape(len(x), -1)
    return x[:, np.linspace(0, x.shape[1] - 1, min(x.shape[1], MOST_TOKENS)).astype(np.int64)]


def _samples(activations: Activations, signal: str, row: int) -> list[Sample]:
    sizes = np.cumsum([0, *(len(rows) for rows in activations.channels.values())])
    x = _over_samples(activations.read(signal, row))
    totals = [layer.size for layer in activations.recording.identity.layers]
    return [Sample.of(x[a:b], total) for (a, b), total in zip(itertools.pairwise(sizes), totals, strict=True)]
