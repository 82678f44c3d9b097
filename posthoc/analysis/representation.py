"""The geometry of what a layer represents: spectra of its channels over the images, and similarity between layers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import FloatArray, in_blocks
from posthoc.analysis.geometry import Representation
from posthoc.analysis.scales import START
from posthoc.analysis.similarity import LEAST_CHANNELS, LEAST_IMAGES, Sample, alignment, participation_ratios

if TYPE_CHECKING:
    from posthoc.store import Activations

MOST_TOKENS = 2048
"""Tokens of all documents that the geometry of a layer is taken over."""
LEAST_EIGENVALUES = 3
DISCARDED = 0.1
"""Share of the ratios of distances, the largest, that the dimension is not fitted to."""
Read = Callable[..., NDArray[Any]]
"""Reads a signal [U, N, ...] in a row of the file, or of some of its `samples`: `Activations.read` or `read_untrained`."""
BLOCK = 512
"""Samples whose distances are in memory at a time."""


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


def representation(activations: "Activations", signal: str) -> Representation:
    """The representation's geometry through training, from the stored `signal`; two checkpoints are in memory at a time.

    Of every checkpoint and layer, [E, L]; similarity by debiased CKA, to the checkpoint before (NaN for the first), to
    the last, and between the layers of a checkpoint [E, L, L]. effective_rank: of the recorded channels over these
    images. participation_ratio: of the recorded channels, participation_ratio_layer: of all channels of the layer; both
    as over any number of images. cka: of the whole layers, too (`posthoc.analysis.similarity`); cka_..._sd: its standard
    deviation over fresh images and channels. Of a layer of which fewer than four channels are recorded, but not all,
    there is no CKA. rms: root mean square of the recorded channels.
    """
    E, L = len(activations), len(activations.layers)
    rank, recorded, layer, rms = np.full((4, E, L), np.nan)
    previous, last, between = np.full((2, E, L), np.nan), np.full((2, E, L), np.nan), np.full((2, E, L, L), np.nan)
    final = samples_of(activations, activations.read, signal, E - 1)
    before = final
    for e in range(E):
        channels = channels_of(activations, activations.read, signal, e)
        samples = centred(activations, channels)
        rms[e] = [_root_mean_square(of_layer) for of_layer in channels]
        for k, sample in enumerate(samples):
            rank[e, k] = effective_rank(sample.singular_values)
            recorded[e, k], layer[e, k] = participation_ratios(sample)
            if e:
                previous[:, e, k] = cka(sample, before[k], same=True)
            last[:, e, k] = cka(sample, final[k], same=True)
        for i, j in itertools.combinations_with_replacement(range(L), 2):
            between[:, e, i, j] = between[:, e, j, i] = cka(samples[i], samples[j], same=i == j)
        before = samples
    return Representation(
        rank, recorded, previous[0], last[0], between[0], layer, previous[1], last[1], between[1], rms
    )


def _root_mean_square(x: NDArray[np.floating]) -> float:
    """Of the values that are finite; NaN where none is."""
    finite = x[np.isfinite(x)].astype(np.float64)
    largest = np.abs(finite).max(initial=0.0) or 1.0
    return float(largest * np.sqrt(np.mean((finite / largest) ** 2))) if finite.size else math.nan


def cka(a: Sample, b: Sample, same: bool) -> tuple[float, float]:
    """Debiased CKA of two layers and its standard deviation; NaN where too few images or channels are recorded."""
    if a.x.shape[1] < LEAST_IMAGES or any(c.recorded < min(c.total, LEAST_CHANNELS) for c in (a, b)):
        return math.nan, math.nan
    similarity = alignment(a, b, same)
    return similarity.cka, similarity.sd


def spectral_signal(activations: "Activations", name: str, rows: Sequence[int]) -> FloatArray:
    """`effective-rank` or `participation-ratio` of each layer at the checkpoints in `rows`, [L, rows]."""

    def measure(sample: Sample) -> float:
        if name == "participation-ratio":
            return participation_ratios(sample)[0]
        return effective_rank(sample.singular_values)

    read, signal = activations.read, activations.signals[0]
    return np.array([[measure(sample) for sample in samples_of(activations, read, signal, e)] for e in rows]).T


def channels_of(activations: "Activations", read: Read, signal: str, row: int) -> list[NDArray[np.floating]]:
    """The recorded channels [C, N] of each layer, from a signal of all as it is read; of those that keep tokens [U, D, T]
    up to `MOST_TOKENS` tokens, evenly spread over the documents, of which some are in memory at a time."""
    D, sizes = len(activations.labels), [len(rows) for rows in activations.channels.values()]
    _, _, _, *length = activations.blocks[f"signals/{signal}/{activations.layers[0]}"].shape
    if length:
        (T,) = length
        start = min(START, T - 1)
        kept = np.linspace(0, D * (T - start) - 1, min(D * (T - start), MOST_TOKENS)).astype(np.int64)
        document, token = np.divmod(kept, T - start)
        parts = []
        for some in in_blocks(D, sum(sizes) * T):
            within = (document >= some.start) & (document < some.stop)
            parts.append(read(signal, row, samples=some)[:, document[within] - some.start, start + token[within]])
        x = np.concatenate(parts, axis=1)
    else:
        x = read(signal, row)
    return [x[a:b] for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]


def samples_of(activations: "Activations", read: Read, signal: str, row: int) -> list[Sample]:
    """As `channels_of`, centred, and of how many channels of the layer."""
    return centred(activations, channels_of(activations, read, signal, row))


def centred(activations: "Activations", channels: Sequence[NDArray[np.floating]]) -> list[Sample]:
    """The recorded channels of each layer, centred, and of how many channels of the layer."""
    totals = [layer.size for layer in activations.recording.identity.layers]
    return [Sample.of(of_layer, total) for of_layer, total in zip(channels, totals, strict=True)]


def spectra(x: FloatArray, groups: Sequence[NDArray[np.int64]]) -> FloatArray:
    """Eigenvalues, largest first, of the covariance of channels x [C, N] over all samples, and without each group of
    them, [1 + G, C]."""
    parts = [(x[:, group].sum(axis=1), x[:, group] @ x[:, group].T, len(group)) for group in groups]
    total, product, N = x.sum(axis=1), x @ x.T, x.shape[1]
    covariances = []
    for left_sum, left_product, left in [(np.zeros(len(x)), np.zeros((len(x), len(x))), 0), *parts]:
        mean = (total - left_sum) / (N - left)
        covariances.append((product - left_product) / (N - left) - np.outer(mean, mean))
    return np.asarray(np.maximum(np.linalg.eigvalsh(np.array(covariances))[:, ::-1], 0.0))


def power_law(eigenvalues: FloatArray) -> float:
    """alpha of eigenvalues that fall as k^-alpha, k = 1, 2, ... (Agrawal et al. 2022): least squares on their logarithms.

    Over those that are not rounding beside the largest; NaN where these are fewer than three.

    >>> round(power_law(np.arange(1, 50) ** -1.5), 6)
    1.5
    """
    if not eigenvalues.size or not eigenvalues[0] > 0:
        return math.nan
    kept = eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]]
    if len(kept) < LEAST_EIGENVALUES:
        return math.nan
    return -float(np.polyfit(np.log(np.arange(1, len(kept) + 1)), np.log(kept), 1)[0])


def anisotropy(x: FloatArray) -> float:
    """Mean cosine of the channels' values at two different samples (Ethayarajh 2019), of x [C, N]; samples that are all 0
    are left out, and NaN with fewer than two.

    >>> anisotropy(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])).__round__(6)
    0.333333
    """
    largest = np.abs(x).max(axis=0, initial=0.0)
    units = x[:, largest > 0] / largest[largest > 0]
    units = units / np.sqrt((units**2).sum(axis=0))
    N = units.shape[1]
    return float(((units.sum(axis=1) ** 2).sum() - N) / (N * (N - 1))) if N > 1 else math.nan


def intrinsic_dimension(x: FloatArray) -> tuple[float, int]:
    """TwoNN (Facco et al. 2017) of samples x [C, N], and of how many of them: the distance to the second nearest over
    that to the nearest has the distribution F(m) = 1 - m^-d, whose d is fitted to all but the largest tenth.

    Samples that lie on another are left out; NaN where fewer than ten differ.
    """
    points = np.unique(x.T, axis=0)
    N = len(points)
    if N < LEAST_IMAGES:
        return math.nan, N
    from scipy.spatial.distance import cdist

    nearest = np.empty((N, 2))
    for begin in range(0, N, BLOCK):
        distances = cdist(points[begin : begin + BLOCK], points)
        distances[np.arange(len(distances)), np.arange(begin, begin + len(distances))] = np.inf
        nearest[begin : begin + BLOCK] = np.sort(np.partition(distances, 1, axis=1)[:, :2], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sort(nearest[:, 1] / nearest[:, 0])
    kept = int(N * (1 - DISCARDED))
    logs, shares = np.log(ratios[:kept]), -np.log1p(-np.arange(1, kept + 1) / N)
    square = float(logs @ logs)
    return (float(logs @ shares) / square if 0 < square < math.inf else math.nan), N
