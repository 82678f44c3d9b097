"""Second moments of sampled channels over sampled images: similarity between layers and dimension of a layer, debiased.

A layer's covariance over all images of a kind is what we would like to know; we have some images and often some of its
channels. With H(i, j) an unbiased estimate of the squared covariance of channels i and j (the U-statistic of four images
behind Song et al. 2012, equation 5), sums over pairs of recorded channels, each pair weighted by how many of the layer it
stands for, are unbiased for sums over the layer: those of one channel with itself are drawn with probability C / of,
those of two with C (C - 1) / (of (of - 1)). Ratios of such sums are the debiased measures; they are not confined to the
range of what they estimate, and where a sum that must be positive is not, there is none.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from posthoc.analysis.arrays import ROUNDINGS, FloatArray, real_array
from posthoc.errors import UsageError

LEAST_IMAGES = 10
"""With fewer the spread of a similarity cannot be told from the images themselves (with four it is 0.7)."""
LEAST_CHANNELS = 4
"""Of a layer of which not all are recorded."""


@dataclass(frozen=True)
class Similarity:
    """Debiased CKA and its standard deviation over fresh images and, where not all are recorded, fresh channels."""

    cka: float
    sd: float


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of channels x [C, N] and y [D, N] over the same images, debiased.

    1 for equal representations up to rotation and scale, 0 on average for independent ones, whatever the numbers of
    channels and images (Kornblith et al. 2019; Nguyen et al. 2021), and so at times below 0. x and y are all channels
    there are; of samples of them `similarity` corrects for those left out. NaN where either does not vary.

    Raises UsageError for fewer than ten images, different numbers of them, or what are no real numbers.
    """
    return similarity(x, y).cka


def similarity(
    x: ArrayLike, y: ArrayLike, of: tuple[int | None, int | None] = (None, None), same: bool = False
) -> Similarity:
    """Debiased CKA of two layers of which x [C, N] and y [D, N] are recorded channels, over the same images.

    of: how many channels each layer has, x and y being drawn from them at random (None: as many as are given); same:
    whether x and y are the same channels, of one layer at two checkpoints, say. Channels that are not finite are left
    out. sd: jackknife over images and over channels. NaN where either layer does not vary, or too little to be told.

    Raises UsageError for fewer than ten images, different numbers of them, fewer than four channels of a layer that
    has more, or what are no real numbers.
    """
    a, b = real_array("x", x), real_array("y", y)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] < LEAST_IMAGES:
        raise UsageError(
            f"x of shape {a.shape} and y of shape {b.shape}: expected channels of the same {LEAST_IMAGES} or more images."
        )
    if same and len(a) != len(b):
        raise UsageError(
            f"x of shape {a.shape} and y of shape {b.shape} cannot be the same channels; give both of one shape."
        )
    for channels, total in ((a, of[0]), (b, of[1])):
        if total is not None and len(channels) < min(total, LEAST_CHANNELS):
            raise UsageError(f"{len(channels)} of {total} channels; {LEAST_CHANNELS} are needed to stand for a layer.")
    return alignment(Sample.of(a, of[0]), Sample.of(b, of[1]), same)


@dataclass(frozen=True)
class Sample:
    """Recorded channels x [C, N], centred and in units of their largest value, of a layer of `total`.

    finite: which channels were finite [C]; the others are zero, and count for nothing.
    """

    x: FloatArray
    finite: NDArray[np.bool_]
    total: int

    @classmethod
    def of(cls, x: NDArray[Any], total: int | None = None) -> "Sample":
        x = x if x.dtype == np.float32 else x.astype(np.float64)
        finite = np.asarray(np.isfinite(x).all(axis=1))
        return cls(centred(np.where(finite[:, None], x, 0)), finite, max(total or 0, int(finite.sum())))

    @property
    def recorded(self) -> int:
        return int(self.finite.sum())

    @property
    def singular_values(self) -> FloatArray:
        """Of the channels as they are recorded, over these images."""
        x = self.x[self.finite]
        return np.asarray(np.linalg.svd(x, compute_uv=False)) if x.size else np.zeros(0)

    @functools.cached_property
    def itself(self) -> "Cross":
        return cross(self, self, same=True)

    def only(self, finite: NDArray[np.bool_]) -> "Sample":
        """Without the channels that are not finite elsewhere."""
        if (finite == self.finite).all():
            return self
        total = self.total if self.recorded < self.total else int(finite.sum())
        return Sample(self.x * finite[:, None], finite, total)


def centred(x: NDArray[np.floating]) -> FloatArray:
    """Channels less their mean, in units of the largest value; what is rounding beside a channel's size is zero."""
    values: FloatArray = x.astype(np.float64)
    largest = np.abs(values).max(initial=0.0)
    values /= largest or 1.0  # no mean overflows
    centre: FloatArray = values - values.mean(axis=1, keepdims=True)
    rounding = 2 * ROUNDINGS * np.finfo(x.dtype).eps * np.abs(values).max(axis=1, initial=0.0)
    centre[np.abs(centre).max(axis=1, initial=0.0) <= rounding] = 0
    largest = np.abs(centre).max(initial=0.0)
    return centre / (largest or 1.0)


def alignment(a: Sample, b: Sample, same: bool) -> Similarity:
    """Debiased CKA of two layers; same: `a` and `b` are the same channels of one layer."""
    if same:
        a, b = a.only(a.finite & b.finite), b.only(a.finite & b.finite)
    first, second, between = a.itself, b.itself, cross(a, b, same)
    if not (first.value > 0 and second.value > 0):
        return Similarity(math.nan, math.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        images = between.images / np.sqrt(first.images * second.images)
        variance = _jackknife(images)
        if same:
            channels = [(a, between.first / np.sqrt(first.first * second.first))]
        else:
            channels = [
                (a, between.first / np.sqrt(first.first * second.value)),
                (b, between.second / np.sqrt(first.value * second.first)),
            ]
    for sample, values in channels:
        if sample.recorded < sample.total:
            variance += (1 - sample.recorded / sample.total) * _jackknife(values[sample.finite])
    if not math.isfinite(variance):
        return Similarity(math.nan, math.nan)
    return Similarity(float(between.value / math.sqrt(first.value * second.value)), math.sqrt(variance))


def _jackknife(values: FloatArray) -> float:
    """Variance of an estimate from what it is without each of n observations [n]; NaN where any of that is not finite."""
    return float((len(values) - 1) * values.var()) if np.isfinite(values).all() else math.nan


def participation_ratios(sample: Sample) -> tuple[float, float]:
    """(sum of eigenvalues)^2 / sum of their squares, of the covariance of the recorded channels and of the layer's.

    Both parts are unbiased over the images, the layer's over the draw of its channels, too. NaN where the sum of squares
    is not positive.
    """
    x, C, total = sample.x, sample.recorded, sample.total
    N = x.shape[1]
    orders = N * (N - 1) * (N - 2) * (N - 3)
    if N < LEAST_IMAGES or not sample.itself.value > 0:
        return math.nan, math.nan

    def squared(power: FloatArray, gram: FloatArray) -> FloatArray:
        """Unbiased square of a variance: over four images half the squared distance of two times that of the others.

        power: squared distance of each image from the mean [..., N]; gram: sum of squares of all products of two images.
        """
        all_power = power.sum(axis=-1)
        over_pairs = all_power**2 * (N * N - 3 * N + 1) - N * (N - 1) * (power**2).sum(axis=-1) + 2 * gram
        return np.asarray(over_pairs / orders)

    G = x @ x.T
    pairs = _Products.of_layers((x**2).sum(axis=0), (x**2).sum(axis=0), x, x, G).estimate(N)
    of_one = squared(x**2, (x**2).sum(axis=1) ** 2).sum()
    of_all = squared((x**2).sum(axis=0), (G**2).sum())
    recorded = of_all / pairs if pairs > 0 else math.nan
    layer = math.nan
    if C > 1 or total == 1:
        layer = (
            (of_one + (of_all - of_one) * (total - 1) / max(C - 1, 1)) * total / C / (total**2 * sample.itself.value)
        )
    return float(recorded), float(layer)


@dataclass(frozen=True)
class Cross:
    """Mean squared covariance over all pairs of channels of two layers; without each image [N], or channel [C], [D]."""

    value: float
    images: FloatArray
    first: FloatArray
    second: FloatArray


def cross(a: Sample, b: Sample, same: bool) -> Cross:
    """The unbiased estimate, and what it would be with an image or a channel less; same: of the same channels."""
    x, y = a.x, b.x
    N = x.shape[1]
    G = x @ y.T
    x2, y2, G2 = x**2, y**2, G**2
    p, q = x2.sum(axis=0), y2.sum(axis=0)
    everything = _Products.of_layers(p, q, x, y, G)
    # Sums of H over the pairs of each channel.
    with_y, with_x = x2 @ q, y2 @ p
    rows = _unbiased(G2.sum(axis=1) - with_y, x2.sum(axis=1) * y2.sum(), with_y, N)
    columns = _unbiased(G2.sum(axis=0) - with_x, y2.sum(axis=1) * x2.sum(), with_x, N)
    value, images = everything.estimate(N), everything.without_each(N)
    if not same:
        C, D = a.recorded, b.recorded
        with np.errstate(invalid="ignore", divide="ignore"):
            return Cross(
                float(np.divide(value, C * D)), images / (C * D),
                (value - rows) / ((C - 1) * D), (value - columns) / (C * (D - 1)),
            )  # fmt: skip
    alone = _Products.of_channels(x, y)
    itself = alone.estimate(N)

    def mean(all_pairs: FloatArray, with_itself: FloatArray, recorded: int) -> FloatArray:
        """Over all pairs of the layer, from sums over the recorded ones and over those of a channel with itself."""
        with np.errstate(invalid="ignore", divide="ignore"):
            each = (a.total - 1) / np.float64(recorded - 1) if a.total > recorded else 1.0
            return np.asarray((with_itself + each * (all_pairs - with_itself)) / (np.float64(recorded) * a.total))

    less = mean(value - rows - columns + itself, itself.sum() - itself, a.recorded - 1)
    all_images = mean(images, alone.without_each(N).sum(axis=0), a.recorded)
    return Cross(float(mean(value, itself.sum(), a.recorded)), all_images, less, less)


def _unbiased(trace: Any, totals: Any, inner: Any, n: int) -> FloatArray:
    """Song et al.'s equation 5 for Gram matrices K and L with zero diagonals: of tr KL, 1'K1 1'L1 and 1'KL1."""
    return np.asarray((trace + totals / ((n - 1) * (n - 2)) - 2 * inner / (n - 2)) / (n * (n - 3)))


@dataclass(frozen=True)
class _Products:
    """Of two Gram matrices K and L of centred channels, diagonals set to zero, for one or many such pairs [...].

    row_sums, other_row_sums: those of K and of L [..., N]; trace: of KL [...]; diagonal: of KL; Lk, Kl: products [..., N].
    """

    row_sums: FloatArray
    other_row_sums: FloatArray
    trace: FloatArray
    diagonal: FloatArray
    Lk: FloatArray
    Kl: FloatArray

    @classmethod
    def of_layers(cls, p: FloatArray, q: FloatArray, x: FloatArray, y: FloatArray, G: FloatArray) -> "_Products":
        """K = x'x and L = y'y, of all channels together; p, q: their diagonals [N]; G = x y'."""
        pq = p * q
        diagonal = ((G @ y) * x).sum(axis=0) - pq
        return cls(-p, -q, np.asarray((G**2).sum() - pq.sum()), diagonal, pq - y.T @ (y @ p), pq - x.T @ (x @ q))

    @classmethod
    def of_channels(cls, x: FloatArray, y: FloatArray) -> "_Products":
        """K and L of each channel by itself, x and y [C, N]."""
        p, q, u = x**2, y**2, x * y
        pq, G = p * q, u.sum(axis=1, keepdims=True)
        yp, xq = (y * p).sum(axis=1, keepdims=True), (x * q).sum(axis=1, keepdims=True)
        return cls(-p, -q, G[:, 0] ** 2 - pq.sum(axis=1), u * G - pq, pq - y * yp, pq - x * xq)

    def estimate(self, n: int) -> FloatArray:
        return _unbiased(
            self.trace,
            self.row_sums.sum(axis=-1) * self.other_row_sums.sum(axis=-1),
            (self.row_sums * self.other_row_sums).sum(axis=-1),
            n,
        )

    def without_each(self, n: int) -> FloatArray:
        """The estimate from all images but one, for each [..., N]."""
        K, L = self.row_sums.sum(axis=-1)[..., None], self.other_row_sums.sum(axis=-1)[..., None]
        inner = (
            (self.row_sums * self.other_row_sums).sum(axis=-1)[..., None]
            - self.row_sums * self.other_row_sums
            - self.Lk
            - self.Kl
            + self.diagonal
        )
        totals = (K - 2 * self.row_sums) * (L - 2 * self.other_row_sums)
        return _unbiased(self.trace[..., None] - 2 * self.diagonal, totals, inner, n - 1)
